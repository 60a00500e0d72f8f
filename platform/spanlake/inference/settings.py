"""The settings of an extraction: labels, thresholds and the kind of selection. They are checked once, here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanlake.calibration import DEFAULT_THRESHOLD, Calibration
from spanlake.errors import UserError, shown
from spanlake.labels import Labels, Threshold, parse_labels, parse_thresholds
from spanlake.text import replace_surrogates

if TYPE_CHECKING:  # rules have an extra of their own
    from spanlake.rules import Rules


@dataclass(frozen=True)
class Settings:
    names: tuple[str, ...]  # as they appear in the output
    prompts: tuple[str, ...]  # for each label, what the model reads
    thresholds: tuple[float, ...]  # one per label; an entity scores above the threshold of its label
    nested: bool
    multi_label: bool
    own: frozenset[str] = frozenset()  # names for which no threshold was asked for: a calibrated model has its own
    rules: Rules | None = None
    join: bool = False  # entities of one label that follow each other are one

    @classmethod
    def make(
        cls,
        labels: Labels,
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        rules: Rules | None = None,
    ) -> Settings:
        """Checks the settings and returns them in one form.

        `labels` are names, or map names to the descriptions that the model reads in their place. A name that is given
        twice counts once. `threshold` is one number, or one per label, by name or in the order of the labels. None
        means the thresholds of the model, or 0.5 where it has none.

        Raises `UserError` where there are no labels, a label is blank, a threshold is outside 0..1, or rules are not
        yet read.
        """
        if isinstance(rules, (str, Path, Mapping)):
            raise UserError(f"The rules are {shown(rules)}; give Rules.read(FILE), or Rules(CONTENT).")
        described = _described(labels)
        names = tuple(described)
        prompts = tuple(replace_surrogates(described[name]) for name in names)
        asked = DEFAULT_THRESHOLD if threshold is None else threshold
        thresholds = _thresholds(asked, labels, names)
        own = frozenset(names if threshold is None else ())
        return cls(names, prompts, thresholds, bool(nested), bool(multi_label), own, rules)

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the labels that an entity can have: those of the model, then the others of the rules."""
        return tuple(dict.fromkeys((*self.names, *(self.rules.labels if self.rules else ()))))

    def with_thresholds(self, given: Mapping[str, float]) -> Settings:
        """Returns the settings with other thresholds for some labels, which are given by name.

        Raises `UserError` for a label that the settings lack, and for a threshold that is outside 0..1.
        """
        unknown = [name for name in given if name not in self.names]
        if unknown:
            names = ", ".join(self.names)
            raise UserError(
                f"There is a threshold for {shown(unknown[0])}, which is not a label; the labels are {names}."
            )
        values = (_probability(given.get(name, known)) for name, known in zip(self.names, self.thresholds, strict=True))
        return replace(self, thresholds=tuple(values), own=self.own.difference(given))

    def joining(self, join: bool) -> Settings:
        """Returns the settings with this value of `join`.

        Raises `UserError` if entities may overlap too: it would not be clear then which follow each other.
        """
        if join and (self.nested or self.multi_label):
            raise UserError(
                "Adjacent entities are joined only if entities do not overlap; leave out nested and multi-label."
            )
        return self if join == self.join else replace(self, join=join)

    def calibrated(self, calibration: Calibration | None) -> Settings:
        """Returns the settings with the model's thresholds, if the caller gave none."""
        if calibration is None or not self.own:
            return self
        labels = zip(self.names, self.prompts, self.thresholds, strict=True)
        thresholds = (calibration.threshold_of(prompt) if name in self.own else known for name, prompt, known in labels)
        return replace(self, thresholds=tuple(thresholds), own=frozenset())

    def as_json(self) -> dict[str, Any]:
        """Returns everything that determines the output, in one canonical form."""
        rules = {"rules": {"digest": self.rules.digest, "labels": list(self.labels)}} if self.rules else {}
        return {
            "labels": dict(zip(self.names, self.prompts, strict=True)),
            "thresholds": dict(zip(self.names, self.thresholds, strict=True)),
            "nested": self.nested,
            "multi_label": self.multi_label,
            **rules,
            **({"join": True} if self.join else {}),
        }


def settings_of_each(
    labels: Sequence[Labels],
    threshold: Threshold | None = None,
    nested: bool = False,
    multi_label: bool = False,
    rules: Rules | None = None,
) -> list[Settings]:
    """Returns the settings of texts that have labels of their own, as `Settings.make` does for each text.

    A mapping of thresholds holds one for each label of any text.

    Raises `UserError` as `Settings.make` does. The message names the text.
    """
    found: list[Settings] = []
    for index, own in enumerate(labels):
        try:
            found.append(Settings.make(own, threshold_of(threshold, own), nested, multi_label, rules))
        except UserError as error:
            raise UserError(f"Text {index}: {error}") from error
    if isinstance(threshold, Mapping):
        known = {name for settings in found for name in settings.names}
        if odd := [name for name in threshold if name not in known]:
            raise UserError(f"There is a threshold for {shown(odd[0])}, which no text has as a label; leave it out.")
    return found


def read_settings(
    labels: str, thresholds: Sequence[str], nested: bool, multi_label: bool, rules: str | None = None
) -> Settings:
    """Returns the settings that --labels, --threshold, --nested, --multi-label and --rules of a command ask for.

    A threshold of a label comes from --threshold LABEL=T, else from the file of the labels, else from --threshold T.

    Raises `UserError` where `parse_labels`, `parse_thresholds`, `Settings.make` or `Rules.read` does.
    """
    found = parse_labels(labels)
    threshold, by_label = parse_thresholds(thresholds)
    settings = Settings.make(found.labels, threshold, nested, multi_label, read_rules(rules) if rules else None)
    return settings.with_thresholds({**found.thresholds, **by_label})


def read_rules(path: str) -> Rules:
    """Returns the rules of a file. Raises `UserError` as `Rules.read` does, and where a library is missing."""
    from spanlake.rules import Rules

    return Rules.read(path)


def _described(labels: Labels) -> dict[str, str]:
    if isinstance(labels, (str, bytes)):
        raise UserError(f"The labels are the single string {shown(labels)}; give a list of names.")
    if isinstance(labels, Mapping):
        pairs = list(labels.items())
    elif isinstance(labels, Sequence):
        pairs = [(label, label) for label in labels]
    else:
        raise UserError(f"The labels are {shown(labels)}; give a list of names, or map names to descriptions.")
    if not pairs:
        raise UserError("There are no labels; name at least one entity type to look for.")
    for pair in pairs:
        for value in pair:
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"The label {shown(value)} is blank or not a string; each must have letters in it.")
    return dict(pairs)


def threshold_of(threshold: Threshold | None, labels: Labels) -> Threshold | None:
    """Returns the threshold of a text with these labels. A mapping may hold those of other labels too."""
    if not isinstance(threshold, Mapping):
        return threshold
    return {name: value for name, value in threshold.items() if name in labels}


def _thresholds(threshold: Threshold, labels: Labels, names: tuple[str, ...]) -> tuple[float, ...]:
    if isinstance(threshold, Mapping):
        odd = [name for name in threshold if name not in names] or [name for name in names if name not in threshold]
        if odd:
            raise UserError(
                f"The thresholds and the labels differ in {shown(odd[0])}; give one threshold for each label."
            )
        values = [threshold[name] for name in names]
    elif isinstance(threshold, Sequence) and not isinstance(threshold, str):
        given = list(labels)
        if len(threshold) != len(given):
            raise UserError(
                f"There are {len(threshold)} thresholds for {len(given)} labels; give one, or one per label."
            )
        for place, name in enumerate(given):
            if threshold[place] != threshold[given.index(name)]:
                raise UserError(f"The label {shown(name)} is given twice with different thresholds; give it once.")
        values = [threshold[given.index(name)] for name in names]
    else:
        values = [threshold] * len(names)
    return tuple(_probability(value) for value in values)


def _probability(value: Any) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # NaN fails this test too
        raise UserError(f"The threshold {shown(value)} is not a number from 0 to 1; the usual one is 0.5.")
    return float(value)
