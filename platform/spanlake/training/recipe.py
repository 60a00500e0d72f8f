"""What one training run is made of, read from YAML. Unknown keys are refused with the nearest known one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spanlake.data.sampling import Sampling, Share
from spanlake.errors import UserError, one_line, shown
from spanlake.modeling.config import SpanHeadKind
from spanlake.splitters.find import SplitterName
from spanlake.strict_yaml import StrictLoader


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _pair(value: object) -> object:
    pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or any(type(item) is not int for item in pair) or not 1 <= pair[0] <= pair[1]:
        raise ValueError(
            f"The recipe's 'parallel.workers' is {shown(value)}; it must be a whole number of at least 1, or a list of "
            "two, the smaller first."
        )
    return pair


Texts = Annotated[tuple[str, ...], Field(strict=False)]  # YAML has lists


class LoraSection(_Section):
    """Low-rank matrices beside linear layers of the encoder, which are trained in place of its weights."""

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False, description="the product is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, le=0.99, description="of what the matrices read")
    targets: Texts = Field(
        default=(), description="linear layers by the last part of their names, such as `query`; if empty, all of them"
    )
    train_head: bool = Field(default=False, description="train also the weights after the encoder, all of them")
    publish: Literal["merged", "adapter"] = Field(
        default="merged",
        description="merged: an ordinary package; adapter: a small package that loads over the package `model.start`",
    )


class ModelSection(_Section):
    """The model at the beginning: exactly one of `encoder`, `encoder_config` and `start`.

    With `start`, the package states the architecture. A labels encoder beside it is refused, and the other fields but
    `lora` are ignored.
    """

    encoder: str = Field(default="", description="a pretrained encoder to begin with: a directory or a Hub id")
    encoder_config: Mapping[str, Any] = Field(default={}, description="an encoder of random weights, with `model_type`")
    tokenizer: str = Field(
        default="mini",
        description="for `encoder_config` alone: a model package or an encoder's directory, for its tokenizer",
    )
    labels_encoder: str = Field(
        default="", description="for a bi-encoder: a pretrained encoder of labels, apart from the texts"
    )
    labels_encoder_config: Mapping[str, Any] = Field(
        default={}, description="for a bi-encoder: a labels encoder of random weights, with `model_type`"
    )
    start: str = Field(default="", description="a model to go on from: a name, a directory or a URI")
    span_head: SpanHeadKind = "paper"
    hidden_size: int = Field(default=768, ge=2, description="D")
    max_width: int = Field(default=12, ge=1, le=1000, description="K, words")
    max_words: int = Field(default=384, ge=2, description="in one window; longer texts are read in several")
    lstm: bool = False
    splitter: SplitterName = Field(default="unicode", description="what cuts texts into words")
    dropout: float = Field(default=0.4, ge=0, le=0.99, description="within the head")
    encoder_dropout: float = Field(default=0.1, ge=0, le=0.99)
    lora: LoraSection | None = None

    @model_validator(mode="after")
    def _check(self) -> ModelSection:
        if sum(map(bool, (self.encoder, self.encoder_config, self.start))) != 1:
            raise ValueError("The recipe must name exactly one of model.encoder, model.encoder_config and model.start.")
        for key in ("encoder_config", "labels_encoder_config"):
            values: Mapping[str, Any] = getattr(self, key)
            if values and "model_type" not in values:
                raise ValueError(f"model.{key} names no model_type, such as bert or deberta-v2.")
            if "vocab_size" in values:
                raise ValueError(f"model.{key} gives a vocab_size, which is that of model.tokenizer; leave it out.")
        if self.labels_encoder and self.labels_encoder_config:
            raise ValueError(
                "The recipe must name at most one of model.labels_encoder and model.labels_encoder_config."
            )
        if self.start and self.labels is not None:
            raise ValueError(
                "The recipe names a labels encoder beside model.start, whose package has its own or none; name one of "
                "the two."
            )
        if self.max_words <= self.max_width:
            raise ValueError(f"model.max_words ({self.max_words}) must exceed model.max_width ({self.max_width}).")
        if self.lora and not self.start and not self.lora.train_head:
            raise ValueError(
                "model.lora.train_head is false, but the head of a new model has random weights; let it be true, or "
                "name a package in model.start."
            )
        if self.lora and not self.start and self.lora.publish == "adapter":
            raise ValueError(
                "model.lora.publish is adapter, which loads over a package; name it in model.start, or let "
                "model.lora.publish be merged."
            )
        return self

    @property
    def labels(self) -> ModelSection | None:
        """Returns a section whose encoder is the labels encoder of a bi-encoder."""
        if not (self.labels_encoder or self.labels_encoder_config):
            return None
        return self.model_copy(update={"encoder": self.labels_encoder, "encoder_config": self.labels_encoder_config})


class DataSection(_Section):
    train: Texts = Field(
        description="files and directories of any format that `spanlake data prepare` reads, or Hub ids"
    )
    root: str = Field(default="", description="the directory that `train`, `dev` and `descriptions` are found in")
    dev: Texts = Field(
        default=(), description="like `train`; if empty, `held_out` examples of each of `train` are kept for it"
    )
    held_out: int = Field(default=50, ge=0, description="examples, and at most a tenth")
    weights: Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default={}, description="how often one of `train` is read in an epoch (1)"
    )
    ignored_types: Texts = Field(
        default=(), description='types that say nothing, such as "miscellaneous"; they are never asked for'
    )
    descriptions: str = Field(default="", description="a JSON file {type: description}, for sampling.description_rate")
    max_per_set: int = Field(
        default=0, ge=0, description="most examples of one data set in an epoch, drawn anew in each epoch; 0: all"
    )
    max_bad_rate: Share = Field(default=0.01, description="share of the records that may be unreadable")
    sampling: Mapping[str, Mapping[str, Any]] = Field(
        default={}, description="for one of `train`: keys of the section `sampling` that differ for it"
    )

    @model_validator(mode="after")
    def _check(self) -> DataSection:
        if not self.train:
            raise ValueError("The recipe's 'data.train' is empty; name the files or directories to train on.")
        repeated = sorted({name for name in self.train if self.train.count(name) > 1})
        if repeated:
            raise ValueError(
                f"data.train names {repeated[0]!r} more than once; give it a weight in data.weights instead."
            )
        for key, named in (("weights", self.weights), ("sampling", self.sampling)):
            unknown = sorted(named.keys() - {*self.train})
            if unknown:
                raise ValueError(
                    f"data.{key} names {unknown[0]!r}, which data.train does not; it names {shown(self.train)}."
                )
        return self


class OptimSection(_Section):
    encoder_lr: float = Field(default=1e-5, ge=0)
    head_lr: float = Field(default=5e-5, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_norm: float = Field(default=10.0, gt=0, description="of the gradient; a larger gradient is scaled down")
    loss: Literal["bce", "focal"] = "bce"
    positive_weight: float = Field(default=1.0, gt=0, description="factor of the loss of true spans")
    focal_alpha: Share = Field(
        default=0.75, description="weight of true spans in focal loss, of 1; other spans get the rest"
    )
    focal_gamma: float = Field(default=2.0, ge=0)
    average: float = Field(
        default=0.0,
        ge=0,
        le=0.999999,
        description="decay of an average of the weights, which is scored and published; 0: no average",
    )


class ScheduleSection(_Section):
    """A batch is what all workers together see in one optimiser step, whatever their number."""

    steps: int = Field(default=30_000, ge=1)
    warmup: Share = Field(default=0.1, description="share of the steps")
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    batch_tokens: int = Field(default=2048, ge=1, description="padded sub-words in a batch")
    batch_texts: int = Field(default=64, ge=1, description="at most")
    micro_tokens: int = Field(
        default=0, ge=0, description="padded sub-words that a worker computes at once; 0: its whole part of the batch"
    )
    evaluate_every: int = Field(default=1_000, ge=1, description="steps")
    patience: int = Field(
        default=0, ge=0, description="evaluations without a better score that end the run early; 0: it never ends early"
    )


class ParallelSection(_Section):
    workers: Annotated[tuple[int, int], BeforeValidator(_pair)] = Field(
        default=(1, 1), description="fewest and most; in YAML one number or [fewest, most]"
    )
    gpus_per_worker: int = Field(default=0, ge=0)
    cpus_per_worker: int = Field(default=1, ge=1)
    zero_stage: int = Field(
        default=0, ge=0, le=3, description="of DeepSpeed: 1 shards the optimiser, 2 also gradients, 3 also weights"
    )
    offload: Literal["none", "cpu"] = Field(default="none", description="where the optimiser's state is kept")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="bfloat16: products in bfloat16, weights in float32; auto: bfloat16 where the hardware multiplies "
        "it fast, float32 elsewhere",
    )
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _check(self) -> ParallelSection:
        if self.offload == "cpu" and not self.zero_stage:
            raise ValueError("parallel.offload is cpu, which needs parallel.zero_stage of 1, 2 or 3.")
        return self


class CheckpointSection(_Section):
    every: int = Field(default=1_000, ge=1, description="steps")
    keep: int = Field(default=2, ge=1)


class MlflowSection(_Section):
    tracking_uri: str
    experiment: str = "spanlake"


class WandbSection(_Section):
    project: str
    mode: Literal["online", "offline", "disabled"] = "online"


class LoggingSection(_Section):
    every: int = Field(default=100, ge=1, description="steps")
    tensorboard: bool = True
    mlflow: MlflowSection | None = None
    wandb: WandbSection | None = None


class Recipe(_Section):
    name: str
    model: ModelSection
    data: DataSection
    sampling: Sampling = Sampling()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    parallel: ParallelSection = ParallelSection()
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    license: str = Field(default="unstated", description="of the trained model")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.optim.average and self.parallel.zero_stage == 3:
            raise ValueError(
                f"optim.average is {self.optim.average:g}, but no worker has all weights at parallel.zero_stage 3; let "
                "optim.average be 0, or parallel.zero_stage at most 2."
            )
        for sampling in (self.sampling, *map(self.sampling_of, self.data.sampling)):
            if sampling.description_rate and not (self.data.descriptions or sampling.descriptions):
                raise ValueError(
                    "sampling.description_rate needs sampling.descriptions, or data.descriptions with a JSON file of "
                    "them."
                )
        return self

    def sampling_of(self, name: str) -> Sampling:
        """Returns the sampling of one of `data.train`: the section `sampling`, with what differs for it."""
        try:
            return Sampling.model_validate({**self.sampling.model_dump(), **self.data.sampling.get(name, {})})
        except ValidationError as error:
            raise ValueError(f"In data.sampling for {name!r}: {_sentence(error, 'sampling')}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain values, for YAML and JSON."""
        return self.model_dump(mode="json")


class _Yaml(StrictLoader):
    """Reads 1e-5 as a number. YAML 1.1 takes it for a text."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), [*"-+.0123456789"]
)
# By pydantic's name of an error: what the value must be.
_ALLOWED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping of keys to values",
    "sequence_str": "a list",
    "string_type": "a text",
    "tuple_type": "a list",
}
_UNKNOWN = ("extra_forbidden", "invalid_key")


def read_recipe(path: Path, changes: list[str]) -> Recipe:
    """Reads a recipe and applies changes, which are `section.key=value` with the value in YAML.

    `extends: FILE`, or a list of files, takes the keys of other recipes first. Their paths are relative to this
    recipe's directory. A later key replaces an earlier one.

    Raises `UserError` for a file that is no recipe, an unknown key, a wrong value, or a change that names no key.
    """
    values = _with_parents(path, ())
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator or not all(name.split(".")):
            raise UserError(f"The change {change!r} is not of the form section.key=value.")
        try:
            _set(values, name.split("."), yaml.load(value, _Yaml))
        except yaml.YAMLError as error:
            raise UserError(f"The value of the change {change!r} is no YAML ({one_line(error)}).") from error
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error)) from error


def _with_parents(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Yaml)
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


def _sentence(error: ValidationError, *within: str) -> str:
    """Returns one sentence about one thing that is wrong. An unknown key comes first: it may be why another is missing.

    `within` is the section that was read, or empty for the whole recipe.
    """
    found = error.errors()
    first = next((item for item in found if item["type"] in _UNKNOWN), found[0])
    *section, key = [*within, *map(str, first["loc"])] or [""]
    name = ".".join([*section, key])
    if first["type"] in _UNKNOWN:
        nearest = difflib.get_close_matches(key, _keys(section), n=1, cutoff=0.0)
        return f"The recipe's key {name!r} is unknown; the nearest known one is {'.'.join([*section, *nearest])!r}."
    if first["type"] == "missing":
        return f"The recipe lacks {name!r}."
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    allowed = _ALLOWED[first["type"]].format(**first.get("ctx", {}))
    return f"The recipe's {name!r} is {shown(first['input'])}; it must be {allowed}."


def _keys(section: list[str]) -> list[str]:
    """Returns the keys of a section of the recipe."""
    kind: Any = Recipe
    for name in section:
        kind = kind.model_fields[name].annotation
        kind = next(iter(get_args(kind)), kind)  # an optional section is a union with None
    return [*kind.model_fields]
