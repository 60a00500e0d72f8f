"""A Haystack component that writes the entities of documents into their metadata."""

from dataclasses import replace
from typing import Any

from spanlake import Extractor
from spanlake.adapters.search import Search, missing
from spanlake.inference.settings import read_rules

try:
    from haystack import Document, component, default_to_dict
except ImportError as error:
    raise missing("haystack-ai", "haystack") from error


@component
class SpanlakeEntityExtractor:
    """Returns documents whose `meta[key]` lists their entities; an empty list where a document has no text."""

    def __init__(
        self,
        labels: list[str] | dict[str, str],
        model: str = "mini",
        threshold: float | dict[str, float] | None = None,
        nested: bool = False,
        multi_label: bool = False,
        device: str = "auto",
        precision: str = "auto",
        key: str = "named_entities",
        rules: str | None = None,
    ) -> None:
        """Takes the arguments of `Extractor.load` and `Extractor.extract`. The first run loads the model.
        `rules` is a file of rules.
        """
        self._arguments: dict[str, Any] = {
            "labels": labels,
            "model": model,
            "threshold": threshold,
            "nested": nested,
            "multi_label": multi_label,
            "device": device,
            "precision": precision,
            "key": key,
            "rules": rules,
        }
        self._search: Search | None = None

    def warm_up(self) -> None:
        """Loads the model, unless it is loaded. Raises as `Extractor.load` does."""
        if self._search is None:
            given = self._arguments
            extractor = Extractor.load(given["model"], device=given["device"], precision=given["precision"])
            labels, threshold, nested, multi_label = (
                given[name] for name in ("labels", "threshold", "nested", "multi_label")
            )
            rules = read_rules(given["rules"]) if given["rules"] else None
            self._search = Search(extractor, labels, threshold, nested, multi_label, rules)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Returns the documents with their entities. Raises as `Extractor.extract` does."""
        self.warm_up()
        assert self._search is not None
        found = self._search.rows(document.content for document in documents)
        key = self._arguments["key"]
        return {
            "documents": [
                replace(document, meta=document.meta | {key: entities or []})
                for document, entities in zip(documents, found, strict=True)
            ]
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the component for a saved pipeline."""
        found: dict[str, Any] = default_to_dict(self, **self._arguments)
        return found
