"""What one training run is made of, read from YAML. Unknown keys are refused with the nearest known one."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from spanlake.data.sampling import Sampling
from spanlake.errors import UserError
from spanlake.modeling.config import SpanHeadKind


@dataclass(frozen=True)
class ModelSection:
    """Either `encoder` or `start`; with `start`, the package's own architecture stands and the rest is not read."""

    encoder: str = ""  # a directory with a Hugging Face encoder, to begin with
    start: str = ""  # a model to go on from: a name, a directory or a URI
    span_head: SpanHeadKind = "paper"
    hidden_size: int = 768  # D
    max_width: int = 12  # K, words
    lstm: bool = False
    dropout: float = 0.4  # within the head
    encoder_dropout: float = 0.1


@dataclass(frozen=True)
class DataSection:
    root: str  # the directory of the files
    train: tuple[str, ...]  # files of word lists, each annotated with all of its types throughout
    ignored_types: tuple[str, ...] = ()  # types that say nothing, such as "miscellaneous": neither asked nor negative
    held_out: int = 50  # examples of each file kept for the dev score


@dataclass(frozen=True)
class OptimSection:
    encoder_lr: float = 1e-5
    head_lr: float = 5e-5
    weight_decay: float = 0.01
    max_norm: float = 10.0
    positive_weight: float = 1.0  # times the loss of true spans


@dataclass(frozen=True)
class ScheduleSection:
    steps: int = 30_000
    warmup: float = 0.1  # share of the steps
    batch_tokens: int = 2048  # padded sub-words in a batch
    batch_texts: int = 64  # at most
    evaluate_every: int = 1_000  # steps


@dataclass(frozen=True)
class Recipe:
    name: str
    model: ModelSection
    data: DataSection
    sampling: Sampling = field(default_factory=Sampling)
    optim: OptimSection = field(default_factory=OptimSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: products in bfloat16, weights in float32
    seed: int = 0
    license: str = "unstated"  # of the model that comes out

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_IN_WORDS = {float: "a number", int: "a whole number", str: "a text", tuple[str, ...]: "a list of texts"}
_SECTIONS = {
    "model": ModelSection,
    "data": DataSection,
    "sampling": Sampling,
    "optim": OptimSection,
    "schedule": ScheduleSection,
}


def read_recipe(path: Path, changes: list[str]) -> Recipe:
    """`changes` are `section.key=value`, the value in YAML.

    Raises `UserError` for a file that is no recipe, an unknown key, or a change that names no key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"The recipe {path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"The recipe {path} holds no sections; see jobs/recipes for examples.")
    for change in changes:
        key, separator, value = change.partition("=")
        *sections, last = key.split(".")
        if not separator or len(sections) > 1:
            raise UserError(f"The change {change!r} is not of the form section.key=value.")
        target = values.setdefault(sections[0], {}) if sections else values
        target[last] = yaml.safe_load(value)
    arguments = {
        key: _section(_SECTIONS[key], value, f"{key}.") if key in _SECTIONS else value for key, value in values.items()
    }
    return _section(Recipe, arguments, "")


def _section(kind: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"The recipe's section {prefix.rstrip('.')!r} is {values!r}; it must map keys to values.")
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(f"The recipe's key {prefix + key!r} is unknown; the nearest known one is {nearest[0]!r}.")
    required = [
        name
        for name, item in known.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and name not in values
    ]
    if required:
        raise UserError(f"The recipe lacks {prefix + required[0]!r}.")
    hints = get_type_hints(kind)
    return kind(**{key: _checked(value, hints[key], prefix + key) for key, value in values.items()})


def _checked(value: Any, kind: Any, key: str) -> Any:
    """The value as the field's type has it. Raises `UserError` for one of another type."""
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML reads 1e-5 as a string
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if get_origin(kind) is Mapping and isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, kind):  # type: ignore[arg-type]
        return value
    raise UserError(f"The recipe's {key!r} is {value!r}; it must be {_IN_WORDS.get(kind, str(kind))}.")
