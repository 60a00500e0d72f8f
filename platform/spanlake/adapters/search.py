"""What all adapters share: the search for entities in texts that may be absent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spanlake import Entity, Extractor, UserError
from spanlake.errors import shown
from spanlake.labels import Labels, Threshold

if TYPE_CHECKING:
    from spanlake.rules import Rules


@dataclass(frozen=True)
class Search:
    """A model, and what to look for. The fields are the arguments of `Extractor.extract`."""

    extractor: Extractor
    labels: Labels
    threshold: Threshold | None = None
    nested: bool = False
    multi_label: bool = False
    rules: Rules | None = None

    def found(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Returns the entities of each text. Raises as `Extractor.extract` does."""
        return self.extractor.extract(texts, self.labels, self.threshold, self.nested, self.multi_label, self.rules)

    def rows(self, values: Iterable[Any]) -> list[list[dict[str, Any]] | None]:
        """Returns the entities of each value as dictionaries, or None where the value is None.

        Raises `UserError` for a value that is neither a string nor None.
        """
        values = list(values)
        for place, value in enumerate(values):
            if value is not None and not isinstance(value, str):
                raise UserError(f"Row {place} of the texts is {shown(value)}; give strings, or None for no text.")
        found = iter(self.found([value for value in values if value is not None]))
        return [None if value is None else [entity.to_dict() for entity in next(found)] for value in values]


def missing(library: str, extra: str) -> ImportError:
    """Returns the error for a library that is not installed."""
    return ImportError(f"This adapter needs {library}, which is not installed: pip install 'spanlake[{extra}]'.")
