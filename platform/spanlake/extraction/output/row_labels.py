"""The labels of single rows, from a column of the source."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from spanlake.errors import UserError, one_line, shown
from spanlake.extraction.source.texts import is_text
from spanlake.inference.settings import Settings
from spanlake.labels import clean_name, split_names


@dataclass(frozen=True)
class RowLabels:
    """A column with the labels of each row, and the thresholds of labels that the settings of the run do not have."""

    column: str
    threshold: float | None = None  # of labels that have no threshold of their own
    by_label: Mapping[str, float] = field(default_factory=dict)

    def check(self, source: pa.Schema) -> None:
        """Raises UserError if there is no column, or if its type is neither a list of strings nor a string."""
        if self.column not in source.names:
            raise UserError(
                f"--labels-column {self.column} is not a column of the source: give one of {', '.join(source.names)}."
            )
        kind = source.field(self.column).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_text(kind.value_type if lists else kind):
            raise UserError(
                f"--labels-column {self.column} holds {kind}: name a column with lists of strings, or with strings "
                "that are JSON lists or names with commas between them."
            )

    def as_json(self) -> dict[str, Any]:
        """Returns everything that determines the result."""
        return {"column": self.column, "threshold": self.threshold, "thresholds": dict(self.by_label)}

    def read(self, batch: pa.RecordBatch, settings: Settings) -> list[Settings | str | None]:
        """Returns the settings of each row; None for a row without labels; the reason for one whose labels are wrong.

        A null means the labels of `settings`, the settings of the run. An empty list means no labels, so that only
        rules find entities. A label of the run has its description and its threshold there.
        """
        known: dict[tuple[str, ...], Settings | str | None] = {}  # equal labels have the same settings
        found: list[Settings | str | None] = []
        for value in batch.column(self.column):
            names = _names(value)
            if names is None:
                found.append(settings if settings.names else "labels are null, and --labels gives none")
            elif isinstance(names, str):
                found.append(names)
            else:
                if names not in known:
                    known[names] = self._settings(names, settings)
                found.append(known[names])
        return found

    def _settings(self, names: tuple[str, ...], settings: Settings) -> Settings | None:
        if not names:
            return replace(settings, names=(), prompts=(), thresholds=(), own=frozenset()) if settings.rules else None
        prompts = dict(zip(settings.names, settings.prompts, strict=True))
        thresholds = {**self.by_label, **dict(zip(settings.names, settings.thresholds, strict=True))}
        described = {name: prompts.get(name, name) for name in names}
        made = Settings.make(described, self.threshold, settings.nested, settings.multi_label, settings.rules)
        own = {name: thresholds[name] for name in made.names if name in thresholds}
        return made.with_thresholds(own).joining(settings.join)


def _names(value: pa.Scalar) -> tuple[str, ...] | str | None:
    """Returns the labels in a value, or the reason why they cannot be read; None for null."""
    try:
        names = value.as_py()
        if isinstance(names, str):
            names = json.loads(names) if names.lstrip().startswith("[") else split_names(names, "label")
    except (ValueError, RecursionError) as error:  # brackets may be nested too deeply
        return f"labels cannot be read ({one_line(error)})"
    if names is None:
        return None
    wrong = _wrong(names)
    return wrong or tuple(dict.fromkeys(clean_name(name) for name in names))


def _wrong(names: Iterable[Any]) -> str | None:
    odd = [name for name in names if not isinstance(name, str) or not name.strip()]
    return f"labels hold {shown(odd[0])}, which is not a name" if odd else None
