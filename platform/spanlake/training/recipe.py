"""What one training run is made of, read from YAML. Unknown keys are refused with the nearest known one."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from spanlake.data.sampling import Sampling
from spanlake.errors import UserError, one_line, shown
from spanlake.modeling.config import SpanHeadKind


@dataclass(frozen=True)
class ModelSection:
    """One of `encoder`, `encoder_config` and `start`; with `start`, the package's own architecture stands and the rest
    is not read."""

    encoder: str = ""  # a pretrained encoder to begin with: a directory or a Hub id
    encoder_config: Mapping[str, Any] = field(default_factory=dict)  # an encoder of random weights, with `model_type`
    tokenizer: str = "mini"  # for `encoder_config` alone: a model package or an encoder's directory, for its tokenizer
    start: str = ""  # a model to go on from: a name, a directory or a URI
    span_head: SpanHeadKind = "paper"
    hidden_size: int = 768  # D
    max_width: int = 12  # K, words
    max_words: int = 384  # in one window; longer texts are read in several
    lstm: bool = False
    dropout: float = 0.4  # within the head
    encoder_dropout: float = 0.1


@dataclass(frozen=True)
class DataSection:
    train: tuple[str, ...]  # files and directories of any format that `spanlake data prepare` reads, or Hub ids
    root: str = ""  # the directory that `train`, `dev` and `descriptions` are found in
    dev: tuple[str, ...] = ()  # as `train`; without any, `held_out` examples of each of `train` are kept for it
    held_out: int = 50  # examples, and at most a tenth
    weights: Mapping[str, float] = field(default_factory=dict)  # how often one of `train` is read in an epoch (1)
    ignored_types: tuple[str, ...] = ()  # types that say nothing, such as "miscellaneous": neither asked nor negative
    descriptions: str = ""  # a JSON file {type: description}, for sampling.description_rate
    max_per_set: int = 0  # examples of one data set read in an epoch, drawn anew in each; 0: all
    max_bad_rate: float = 0.01  # share of the records that may be unreadable


@dataclass(frozen=True)
class OptimSection:
    encoder_lr: float = 1e-5
    head_lr: float = 5e-5
    weight_decay: float = 0.01
    max_norm: float = 10.0  # of the gradient, clipped to it
    loss: Literal["bce", "focal"] = "bce"
    positive_weight: float = 1.0  # times the loss of true spans
    focal_alpha: float = 0.75  # weight of true spans against that of the others, for focal loss
    focal_gamma: float = 2.0


@dataclass(frozen=True)
class ScheduleSection:
    """A batch is what one optimiser step sees on all workers together, whatever their number."""

    steps: int = 30_000
    warmup: float = 0.1  # share of the steps
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    batch_tokens: int = 2048  # padded sub-words in a batch
    batch_texts: int = 64  # at most
    micro_tokens: int = 0  # padded sub-words that a worker computes at once; 0: its whole share of the batch
    evaluate_every: int = 1_000  # steps
    patience: int = 0  # evaluations without a better score before the run ends early; 0: it never does


@dataclass(frozen=True)
class ParallelSection:
    workers: tuple[int, int] = (1, 1)  # fewest and most; in YAML one number or [fewest, most]
    gpus_per_worker: int = 0
    cpus_per_worker: int = 1
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed: optimiser, gradients and weights are sharded from 1, 2 and 3 on
    offload: Literal["none", "cpu"] = "none"  # where the optimiser's state is kept
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: products in bfloat16, weights in float32
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class CheckpointSection:
    every: int = 1_000  # steps
    keep: int = 2


@dataclass(frozen=True)
class MlflowSection:
    tracking_uri: str
    experiment: str = "spanlake"


@dataclass(frozen=True)
class WandbSection:
    project: str
    mode: Literal["online", "offline", "disabled"] = "online"


@dataclass(frozen=True)
class LoggingSection:
    every: int = 100  # steps
    tensorboard: bool = True
    mlflow: MlflowSection | None = None
    wandb: WandbSection | None = None


@dataclass(frozen=True)
class Recipe:
    name: str
    model: ModelSection
    data: DataSection
    sampling: Sampling = field(default_factory=Sampling)
    optim: OptimSection = field(default_factory=OptimSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    seed: int = 0
    license: str = "unstated"  # of the model that comes out

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON have them."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


# Least and greatest value of the numbers; where there is no row, anything goes.
_RANGES: dict[str, tuple[float, float]] = {
    "model.hidden_size": (2, math.inf),
    "model.max_width": (1, 1_000),
    "model.max_words": (2, math.inf),
    "model.dropout": (0, 0.99),
    "model.encoder_dropout": (0, 0.99),
    "data.held_out": (0, math.inf),
    "data.max_per_set": (0, math.inf),
    "data.max_bad_rate": (0, 1),
    "sampling.max_types": (1, math.inf),
    "sampling.negative_ratio": (0, 0.95),
    "sampling.max_negatives": (0, math.inf),
    "sampling.frequency_power": (-10, 10),
    "sampling.description_rate": (0, 1),
    "sampling.broader_rate": (0, 1),
    "sampling.above_rate": (0, 1),
    "sampling.synonym_rate": (0, 1),
    "optim.encoder_lr": (0, math.inf),
    "optim.head_lr": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.max_norm": (1e-9, math.inf),
    "optim.positive_weight": (1e-9, math.inf),
    "optim.focal_alpha": (0, 1),
    "optim.focal_gamma": (0, math.inf),
    "schedule.steps": (1, math.inf),
    "schedule.warmup": (0, 1),
    "schedule.batch_tokens": (1, math.inf),
    "schedule.batch_texts": (1, math.inf),
    "schedule.micro_tokens": (0, math.inf),
    "schedule.evaluate_every": (1, math.inf),
    "schedule.patience": (0, math.inf),
    "parallel.gpus_per_worker": (0, math.inf),
    "parallel.cpus_per_worker": (1, math.inf),
    "checkpoint.every": (1, math.inf),
    "checkpoint.keep": (1, math.inf),
    "logging.every": (1, math.inf),
    "seed": (0, 2**63 - 1),
}
_IN_WORDS = {
    float: "a number",
    int: "a whole number",
    str: "a text",
    bool: "true or false",
    tuple[str, ...]: "a list of texts",
    tuple[int, int]: "a whole number of at least 1, or a list of two, the smaller first",
    Mapping[str, float]: "a mapping of texts to numbers",
    Mapping[str, str]: "a mapping of texts to texts",
}


def read_recipe(path: Path, changes: list[str]) -> Recipe:
    """`changes` are `section.key=value`, the value in YAML. `extends: FILE` takes over another recipe, or a list of
    parts of recipes, found from this one's directory on, section by section and key by key; what comes later stands.

    Raises `UserError` for a file that is no recipe, an unknown key, a wrong value, or a change that names no key.
    """
    values = _with_parents(path, ())
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator or not all(name.split(".")):
            raise UserError(f"The change {change!r} is not of the form section.key=value.")
        try:
            _set(values, name.split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise UserError(f"The value of the change {change!r} is no YAML ({one_line(error)}).") from error
    recipe: Recipe = _section(Recipe, values, "")
    _check_together(recipe)
    return recipe


def _with_parents(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The recipe {path} cannot be read: {one_line(error)}.") from error
    if not isinstance(values, dict):
        raise UserError(f"The recipe {path} holds no sections; see jobs/recipes for examples.")
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    seen = (*seen, path.resolve())
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"The recipe {path} extends {shown(parents)}; it must name files of recipes.")
    base: dict[str, Any] = {}
    for parent in parents:
        if (path.parent / parent).resolve() in seen:
            raise UserError(f"The recipe {path} extends {parent}, which leads back to it.")
        _merge(base, _with_parents(path.parent / parent, seen))
    _merge(base, values)
    return base


def _merge(base: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        merged = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **value} if merged else value


def _set(values: dict[str, Any], names: list[str], value: Any) -> None:
    for name in names[:-1]:
        inner = values.get(name)
        values[name] = dict(inner) if isinstance(inner, dict) else {}
        values = values[name]
    values[names[-1]] = value


def _check_together(recipe: Recipe) -> None:
    model, data = recipe.model, recipe.data
    if sum(map(bool, (model.encoder, model.encoder_config, model.start))) != 1:
        raise UserError("The recipe must name exactly one of model.encoder, model.encoder_config and model.start.")
    if model.max_words <= model.max_width:
        raise UserError(f"model.max_words ({model.max_words}) must exceed model.max_width ({model.max_width}).")
    if not data.train:
        raise UserError("The recipe's 'data.train' is empty; name the files or directories to train on.")
    repeated = sorted({name for name in data.train if data.train.count(name) > 1})
    if repeated:
        raise UserError(f"data.train names {repeated[0]!r} more than once; give it a weight in data.weights instead.")
    unknown = sorted(data.weights.keys() - {*data.train})
    if unknown:
        raise UserError(f"data.weights names {unknown[0]!r}, which data.train does not; it names {shown(data.train)}.")
    wrong = [name for name, weight in data.weights.items() if not 0 < weight < math.inf]
    if wrong:
        raise UserError(f"data.weights gives {wrong[0]!r} {data.weights[wrong[0]]}; a weight must exceed 0.")
    if recipe.parallel.offload == "cpu" and not recipe.parallel.zero_stage:
        raise UserError("parallel.offload is cpu, which needs parallel.zero_stage of 1, 2 or 3.")
    if recipe.sampling.description_rate and not (data.descriptions or recipe.sampling.descriptions):
        raise UserError(
            "sampling.description_rate needs sampling.descriptions, or data.descriptions with a JSON file of them."
        )


def _section(kind: Any, values: Any, prefix: str) -> Any:
    """`values` as the dataclass `kind`; `prefix` is its place in the recipe, such as `optim.`."""
    if not isinstance(values, dict):
        raise UserError(f"The recipe's section {prefix.rstrip('.')!r} is {values!r}; it must map keys to values.")
    known = {item.name: item for item in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise UserError(
                f"The recipe's key {prefix + str(key)!r} is unknown; the nearest known one is {prefix + nearest[0]!r}."
            )
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
    """The value as the field's type has it. Raises `UserError` for one of another type or out of range."""
    if get_origin(kind) is UnionType:  # a section that may be left out
        return None if value is None else _checked(value, get_args(kind)[0], key)
    if dataclasses.is_dataclass(kind):
        return _section(kind, value, f"{key}.")
    read = _read(value, kind)
    if read is None:
        allowed = f"one of {list(get_args(kind))}" if get_origin(kind) is Literal else _IN_WORDS.get(kind, "a mapping")
        raise UserError(f"The recipe's {key!r} is {shown(value)}; it must be {allowed}.")
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    if isinstance(read, (int, float)) and not low <= read <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise UserError(f"The recipe's {key!r} is {value!r}; it must be {allowed}.")
    return read


def _read(value: Any, kind: Any) -> Any:
    """The value as `kind`; None where it is no such thing."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and (number or isinstance(value, str)):
        with contextlib.suppress(ValueError):
            read = float(value)  # YAML reads 1e-5 as a text
            return None if math.isnan(read) else read
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if get_origin(kind) is Literal and any(value == item and type(value) is type(item) for item in get_args(kind)):
        return value
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind == tuple[int, int]:
        pair = (value, value) if type(value) is int else tuple(value) if isinstance(value, list) else ()
        if len(pair) == 2 and all(type(item) is int for item in pair) and 1 <= pair[0] <= pair[1]:
            return pair
    if get_origin(kind) is Mapping and isinstance(value, dict) and all(isinstance(item, str) for item in value):
        inner = get_args(kind)[1]
        if inner in (str, float):
            value = {name: _read(item, inner) for name, item in value.items()}
        return None if inner in (str, float) and None in value.values() else value
    return None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
