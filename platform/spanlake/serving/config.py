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

    body_bytes: int = Field(8 << 20, ge=1, description="of one request's body")
    texts: int = Field(1000, ge=1, description="in one request")
    text_characters: int = Field(200_000, ge=1, description="code points of one text")
    labels: int = Field(200, ge=1, description="in one request")
    label_characters: int = Field(1000, ge=1, description="code points of one label or description")
    request_seconds: float = Field(30, gt=0, description="until a request is answered with 504")
    queue_seconds: float = Field(10, gt=0, description="of work that may wait before requests get 429")
    stream_bytes: int = Field(256 << 20, ge=1, description="of one streamed request")
    stream_window: int = Field(64, ge=1, description="texts of one stream in work at once")


class ServeConfig(_Checked):
    model: str = Field("mini", description="answers where a request names none: a name, a directory, a URI, a Hub id")
    models: dict[str, str] = Field({}, description="more models that a request may name, by the name it gives")
    loaded_models: int = Field(2, ge=1, description="in memory at once; the least recently used gives way")
    device: str = "auto"
    precision: Precision = "auto"
    batch_tokens: int | None = Field(None, ge=1, description="padded sub-words of one forward pass")
    threads: int | None = Field(None, ge=1, description="that one replica computes with on a CPU")
    stuck_seconds: float = Field(120, gt=0, description="after which a forward pass is taken for dead")
    limits: Limits = Limits()
    keys: str | None = Field(None, description="a file of API keys; without one, nobody needs a key")
    cors_origins: tuple[str, ...] = Field((), description="web origins whose pages may call this server")


def read_config(values: Any) -> ServeConfig:
    """Raises `UserError` for an unknown setting or a value outside its range."""
    try:
        return ServeConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the settings"
        raise UserError(f"In the serving settings, {where} is {shown(first['input'])}: {first['msg']}.") from error
