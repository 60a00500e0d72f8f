"""The messages of the API: what a request may hold, what an answer holds. All protocols share them."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spanlake.errors import UserError, shown
from spanlake.inference.settings import Settings, settings_of_each, threshold_of
from spanlake.redaction import Style
from spanlake.serving.config import Limits
from spanlake.serving.errors import ApiError, invalid, too_large

if TYPE_CHECKING:
    from spanlake.rules import Rules

_EXAMPLE: Any = {
    "texts": ["Alain Farley works at McGill University"],
    "labels": ["person", "organization"],
    "threshold": 0.5,
}


# How pydantic names the alternatives of a field in an error's place.
_UNION_PARTS = (
    "list[str]",
    "dict[str,str]",
    "list[union[list[str],dict[str,str]]]",
    "float",
    "list[float]",
    "dict[str,float]",
)

_KNOWN_SETTINGS = 64

_Model = TypeVar("_Model", bound=BaseModel)

LabelSet = list[str] | dict[str, str]
Offsets = Literal["code_points", "utf16"]


class _Strict(BaseModel):
    """Refuses unknown fields, and values of another type."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Options(_Strict):
    threshold: float | list[float] | dict[str, float] | None = Field(
        default=None,
        description="Entities score above it: one number, or one per label, in order or by name; null: the model's "
        "own, else 0.5.",
    )
    nested: bool = Field(default=False, description="Allow entities within entities.")
    multi_label: bool = Field(default=False, description="Allow several labels for one span.")
    join_adjacent: bool = Field(
        default=False,
        description="Make one entity of those of one label that follow each other with at most whitespace between "
        "them. Not with `nested` or `multi_label`.",
    )
    model: str | None = Field(default=None, description="One that GET /v1/models lists; null: the default.")
    offsets: Offsets = Field(
        default="code_points",
        description="What `start` and `end` count: code points, or UTF-16 code units as strings of JavaScript, Java "
        "and C# do.",
    )
    rules: str | None = Field(
        default=None,
        description="The name of rules that the server has, which find entities beside the model; each entity then "
        "says its `source`.",
    )
    redact: Style | None = Field(
        default=None,
        description="Return each text with its entities replaced, too: by [LABEL], by [LABEL:keyed hash], by a "
        "fixed mask, or by made-up values (surrogate).",
    )


class Question(_Options):
    """What to look for. The first line of a stream."""

    labels: LabelSet = Field(
        description="What to find: names, or names with descriptions, which the model reads instead.",
        examples=[["person", "organization"], {"drug": "name of a medicine"}],
    )

    def settings(self, rules: Rules | None, own: LabelSet | None = None) -> Settings:
        """Returns the settings of a text that may have labels of its own. `rules` are those of the name `self.rules`.
        A mapping of thresholds may hold some for labels that the text does not have.

        Raises: ApiError 422 for values that no model can use.
        """
        try:
            options = self.nested, self.multi_label, rules
            labels, threshold = (
                (self.labels, self.threshold) if own is None else (own, threshold_of(self.threshold, own))
            )
            return Settings.make(labels, threshold, *options).joining(self.join_adjacent)
        except UserError as error:
            raise invalid(str(error)) from error

    def check(self, limits: Limits) -> None:
        """Raises: ApiError 413 for longer labels than are allowed."""
        check_labels(self.labels, limits)


class ExtractRequest(_Options):
    """Texts, and what to look for in them."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    texts: list[str] = Field(description="Each is answered by position.")
    labels: LabelSet | list[LabelSet] = Field(
        description="What to find: names, or names with descriptions, which the model reads instead; or a "
        "list of these, one for each text.",
        examples=[["person", "organization"], {"drug": "name of a medicine"}, [["person"], ["drug", "dose"]]],
    )

    @cached_property
    def label_sets(self) -> list[LabelSet]:
        """Returns the one set of labels of all texts, or the set of each text."""
        if isinstance(self.labels, list) and not all(isinstance(each, str) for each in self.labels):
            return cast(list[LabelSet], self.labels)
        return [cast(LabelSet, self.labels)]

    def settings(self, rules: Rules | None) -> list[Settings]:
        """Returns the settings of each text. `rules` are those of the name `self.rules`.

        Raises: ApiError 422 for values that no model can use.
        """
        options = self.threshold, self.nested, self.multi_label, rules
        sets = self.label_sets
        try:
            if sets[0] is self.labels:
                return [_settings(sets[0], *options).joining(self.join_adjacent)] * len(self.texts)
            if len(sets) != len(self.texts):
                raise UserError(
                    f"There are {len(sets)} lists of labels for {len(self.texts)} texts; give one, or one per text."
                )
            return [each.joining(self.join_adjacent) for each in settings_of_each(sets, *options)]
        except UserError as error:
            raise invalid(str(error)) from error

    def check(self, limits: Limits) -> None:
        """Raises: ApiError 413 for longer texts or labels than are allowed."""
        for own in self.label_sets:
            check_labels(own, limits)
        for index, text in enumerate(self.texts):
            check_text(index, text, limits)


def _settings(
    labels: LabelSet,
    threshold: float | list[float] | dict[str, float] | None,
    nested: bool,
    multi_label: bool,
    rules: Rules | None,
) -> Settings:
    """Returns what `Settings.make` returns. Callers ask for the same labels again and again."""
    if isinstance(labels, list) and (threshold is None or isinstance(threshold, float)):
        return _known_settings(tuple(labels), threshold, nested, multi_label, rules)
    return Settings.make(labels, threshold, nested, multi_label, rules)


_known_settings = lru_cache(maxsize=_KNOWN_SETTINGS)(Settings.make)


class StreamedText(_Strict):
    """A line of a stream after the first, which may also be the text alone as a JSON string."""

    text: str
    labels: LabelSet | None = Field(
        default=None, description="Labels of this text, in place of those of the first line."
    )


def check_labels(labels: LabelSet, limits: Limits) -> None:
    """Raises: ApiError 413 for longer labels than are allowed."""
    for value in [*labels, *labels.values()] if isinstance(labels, dict) else labels:
        if len(value) > limits.label_characters:
            raise too_large(
                f"The label {shown(value)} has {len(value)} characters; at most {limits.label_characters} are allowed."
            )


def check_text(index: int, text: str, limits: Limits) -> None:
    """Raises: ApiError 413."""
    if len(text) > limits.text_characters:
        raise too_large(f"Text {index} has {len(text)} characters; at most {limits.text_characters} are allowed.")


class FoundEntity(_Strict):
    """`text` is the given text from `start` to `end`, end exclusive. Both count what the request's `offsets` says."""

    start: int
    end: int
    text: str
    label: str
    score: float = Field(description="From 0 to 1.")
    source: Literal["model", "rule"] | None = Field(
        default=None, description="What has found it. Stands only where the request names rules."
    )


class ModelName(_Strict):
    name: str
    fingerprint: str = Field(description="SHA-256 of all that determines the model's answers.")


class TextError(_Strict):
    """A text that could not be answered, while others of its request were."""

    index: int
    type: str
    message: str


class ExtractResponse(_Strict):
    model: ModelName
    results: list[list[FoundEntity] | None] = Field(
        description="The entities of each text, by position. Null for a text that `errors` names."
    )
    redacted: list[str | None] | None = Field(
        default=None, description="Each text with its entities replaced. Only if the request says `redact`."
    )
    errors: list[TextError] | None = Field(default=None, description="Only if a text could not be answered.")


class ModelInfo(ModelName):
    """The model that answers a request without `model`."""

    device: str
    precision: str
    max_width: int = Field(description="Words of the longest entity that it can find.")
    labels: list[str] = Field(description="Labels of its training data, as its package says. It takes any others too.")


class ModelAbout(_Strict):
    """What a model is good at, as far as the server's operator and the model's package say."""

    name: str
    description: str | None = Field(description="Of the server's operator.")
    labels: list[str] = Field(description="Labels of its training data, as its package says. It takes any others too.")
    scores: dict[str, float] = Field(description="F1 in percent on sets with gold entities, as its package says.")
    license: str | None
    is_loaded: bool = Field(description="A request for another model waits until it is loaded.")


class ModelList(_Strict):
    default: str
    models: list[str] = Field(description="The names that a request may give, the default first.")
    about: list[ModelAbout] = Field(description="In the same order.")


class Status(_Strict):
    status: str


class Error(BaseModel):
    """`type` is for programs, `message` one sentence for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str


class ErrorResponse(_Strict):
    error: Error


def parse(schema: type[_Model], values: Any, limits: Limits) -> _Model:
    """Raises: ApiError 422 that names the field, what it holds and what it should, 413 for more texts or labels than
    are allowed.
    """
    if not isinstance(values, dict):
        raise invalid(f"The body is {shown(values)}; send a JSON object.")
    _check_counts(values, limits)
    unknown = next((name for name in values if name not in schema.model_fields), None)
    try:
        # Each unknown field and each wrong value is a problem of its own to pydantic, and one body may hold millions.
        return schema.model_validate(
            {name: value for name, value in values.items() if name in schema.model_fields or name == unknown}
        )
    except ValidationError as error:
        raise _first_problem(error) from None


def _check_counts(values: dict[str, Any], limits: Limits) -> None:
    texts, thresholds = _count(values.get("texts")), _count(values.get("threshold"))
    labels = values.get("labels")
    sets = labels if isinstance(labels, list) and any(map(_count, labels)) else [labels]
    if len(sets) > limits.texts:
        raise too_large(f"There are {len(sets)} lists of labels; at most {limits.texts} texts are allowed.")
    if (most := max(map(_count, sets))) > limits.labels:
        raise too_large(f"There are {most} labels; at most {limits.labels} are allowed.")
    if thresholds > limits.labels * len(sets):
        raise too_large(f"There are {thresholds} thresholds; at most {limits.labels * len(sets)} labels are allowed.")
    if texts > limits.texts:
        raise too_large(
            f"There are {texts} texts; at most {limits.texts} are allowed in a request: send several, or use "
            "/v1/extract/stream."
        )


def _count(value: Any) -> int:
    return len(value) if isinstance(value, (list, dict)) else 0


def _first_problem(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
    field = problems[0]["loc"][:1]
    # Each alternative of the field has problems of its own; the one whose problem lies deepest fits best.
    first = max((each for each in problems if each["loc"][:1] == field), key=lambda each: len(_place(each["loc"])))
    place = _place(first["loc"]) or ["the body"]
    return invalid(f"{'.'.join(place)}: {first['msg']}; it is {shown(first['input'])}.", field=place[0])


def _place(location: tuple[int | str, ...]) -> list[str]:
    return [str(part)[:50] for part in location if part not in _UNION_PARTS]
