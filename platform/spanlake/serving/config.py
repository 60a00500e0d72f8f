"""What an operator can set: models, limits, keys. Read from `serve/config.yaml`, the command line, or Python."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spanlake.errors import UserError, shown
from spanlake.inference.hardware import Precision


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Checked):
    """What one request may ask for, and how long it may take."""

    body_bytes: int = Field(default=8 << 20, ge=1, description="of one request's body")
    texts: int = Field(default=1000, ge=1, description="in one request")
    text_characters: int = Field(default=200_000, ge=1, description="code points of one text")
    labels: int = Field(default=200, ge=1, description="in one request")
    label_characters: int = Field(default=1000, ge=1, description="code points of one label or description")
    spans: int = Field(default=200_000, ge=1, description="found in one request's texts above its thresholds")
    request_seconds: float = Field(default=30, gt=0, description="until a request is answered with 504")
    queue_seconds: float = Field(default=10, gt=0, description="that a request may wait for others, else it gets 429")
    stream_bytes: int = Field(default=256 << 20, ge=1, description="of one streamed request")
    stream_window: int = Field(default=64, ge=1, description="texts of one stream in work at once")


class ServeConfig(_Checked):
    model: str = Field(default="mini", description="the default: a name, a directory, a URI, or a Hub id")
    models: dict[str, str] = Field(default={}, description="more models, by the name that a request gives")
    descriptions: dict[str, str] = Field(
        default={}, description="what models are good at, by the name of the model; GET /v1/models shows it"
    )
    loaded_models: int = Field(default=2, ge=1, description="of `models` in memory at once")
    device: str = "auto"
    precision: Precision = "auto"
    batch_tokens: int | None = Field(default=None, ge=1, description="padded sub-words of one forward pass")
    threads: int | None = Field(default=None, ge=1, description="that one replica computes with on a CPU")
    stuck_seconds: float = Field(
        default=120, gt=0, description="that a forward pass may take; then the model counts as dead"
    )
    limits: Limits = Limits()
    keys: str | None = Field(default=None, description="a file of API keys; without one, requests need no key")
    rules: dict[str, str] = Field(default={}, description="files of rules that a request may name, by their names")
    redact_key_file: str | None = Field(
        default=None, description="a file with the key of hashes and surrogates; without one, SPANLAKE_REDACTION_KEY"
    )
    audit_log: str | None = Field(default=None, description="a directory for files with a line for each request")
    cors_origins: tuple[str, ...] = Field(default=(), description="web origins whose pages may call this server")


def read_config(values: Any) -> ServeConfig:
    """Raises `UserError` for an unknown setting or a value outside its range."""
    try:
        return ServeConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the settings"
        raise UserError(f"In the serving settings, {where} is {shown(first['input'])}: {first['msg']}.") from error
