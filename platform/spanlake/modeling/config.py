"""The architecture of a span model. With the weights and the tokenizer, it determines the scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from spanlake.errors import PackageError, shown
from spanlake.modeling.counting import COUNTING_KINDS, CountingKind
from spanlake.splitters.find import SPLITTERS

SpanHeadKind = Literal["paper", "marker_v0", "marker", "token_level"]

# The cost of a window grows with the square of its sub-words. Encoders with relative positions have no limit of their
# own, so this limit keeps a window of very long "words" within memory.
RELATIVE_POSITION_WINDOW = 2048
# Values that packages of the first version do not have.
_LATER = ("splitter", "labels_encoder", "counting", "counter_token_id")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one model.

    `span_head` is `paper` (FFN over the pair of end words; Zaratiana et al. 2023, section 2.2), `marker_v0` or
    `marker` (the heads of the published checkpoints), or `token_level` (start, end and inside of each word).
    """

    encoder: dict[str, Any]  # the Hugging Face configuration of the encoder, with `model_type`
    hidden_size: int  # D, width of word and type vectors; a projection follows an encoder of another width
    span_head: SpanHeadKind
    entity_token: str  # precedes each type in the prompt
    separator_token: str  # separates the prompt from the words
    entity_token_id: int
    max_width: int = 12  # K, words in the longest span; at token level, in the longest that no window cuts
    lstm: bool = False  # a bidirectional LSTM over the words
    dropout: float = 0.4
    max_words: int = 384  # words in one window
    max_labels: int | None = 25  # labels in one prompt; None: as many as fit
    type_vector_at_entity_token: bool = True  # otherwise at the token that follows it
    splitter: str = "gliner"  # cuts texts into words; a name of spanlake.splitters
    labels_encoder: dict[str, Any] | None = None  # of a bi-encoder, which has no prompt: like `encoder`, for labels
    counting: CountingKind | None = None  # of GLiNER2: how the types become vectors
    counter_token_id: int | None = None  # of GLiNER2: the token whose vector says how many entities there are

    def __post_init__(self) -> None:
        if self.span_head not in get_args(SpanHeadKind):
            allowed = ", ".join(get_args(SpanHeadKind))
            raise PackageError(f"The span head {shown(self.span_head)} is unknown; this version reads {allowed}.")
        if self.splitter not in SPLITTERS:
            raise PackageError(
                f"The splitter {shown(self.splitter)} is unknown; this version has {', '.join(SPLITTERS)}."
            )
        if self.counting is not None and self.counting not in COUNTING_KINDS:
            allowed = ", ".join(COUNTING_KINDS)
            raise PackageError(f"The counting {shown(self.counting)} is unknown; this version reads {allowed}.")
        if (self.counting is None) != (self.counter_token_id is None):
            raise PackageError("The model has one of counting and counter_token_id without the other; fetch it again.")
        for name, kind in (("encoder", dict), ("entity_token", str), ("separator_token", str)):
            if not isinstance(getattr(self, name), kind):
                raise PackageError(f"The model's {name} is {shown(getattr(self, name))}; it must be a {kind.__name__}.")
        if not isinstance(self.encoder.get("model_type"), str):
            raise PackageError("The model's encoder configuration has no model_type; fetch the package again.")
        if self.labels_encoder is not None and (
            not isinstance(self.labels_encoder, dict) or not isinstance(self.labels_encoder.get("model_type"), str)
        ):
            raise PackageError("The model's labels_encoder configuration has no model_type; fetch the package again.")
        for name in ("hidden_size", "max_width", "max_words", "max_labels"):
            value = getattr(self, name)
            if name == "max_labels" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PackageError(f"The model's {name} is {shown(value)}; it must be a whole number of at least 1.")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise PackageError(f"The model's dropout is {shown(self.dropout)}; it must be a number from 0 to below 1.")
        if self.max_words <= self.max_width:
            raise PackageError(f"The model's max_words ({self.max_words}) must exceed max_width ({self.max_width}).")

    @property
    def encoders(self) -> list[dict[str, Any]]:
        """Returns the configurations of the encoders: of words, and of labels where these are read apart."""
        return [self.encoder] if self.labels_encoder is None else [self.encoder, self.labels_encoder]

    @property
    def token_level(self) -> bool:
        return self.span_head == "token_level"

    @property
    def widest(self) -> int:
        """Returns how many words the widest span has that the model can find.

        A token-level model finds spans of more than max_width words only where one window holds them.
        """
        return self.max_words if self.token_level else self.max_width

    @property
    def max_tokens(self) -> int:
        """Returns how many sub-words, special tokens included, the encoder reads at once."""
        return window_of(self.encoder)

    @property
    def pad_token_id(self) -> int:
        return self.encoder.get("pad_token_id") or 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the values, which a fingerprint is made of.

        Values that packages of the first version do not have are left out where they are the default: the fingerprints
        of these packages hold.
        """
        values = asdict(self)
        for field in fields(self):
            if field.name in _LATER and values[field.name] == field.default:
                del values[field.name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Builds the configuration from its values. Raises `PackageError` on a missing or unknown key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise PackageError(f"The model's architecture has unknown keys {unknown}; a newer Spanlake may read it.")
        try:
            return cls(**values)
        except TypeError as error:
            raise PackageError(f"The model's architecture is incomplete: {error}.") from error


def window_of(encoder: dict[str, Any]) -> int:
    """Returns how many sub-words, special tokens included, an encoder of this configuration reads at once."""
    kind, positions = encoder["model_type"], encoder.get("max_position_embeddings")
    relative = kind in ("deberta", "deberta-v2") and not encoder.get("position_biased_input", True)
    if not isinstance(positions, int) or positions < 1 or relative:
        return RELATIVE_POSITION_WINDOW
    # These families number positions from padding_idx + 1.
    offset = 2 if kind in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer") else 0
    return min(positions - offset, RELATIVE_POSITION_WINDOW)
