"""A LangChain transformer that writes the entities of documents into their metadata."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanlake import Extractor
from spanlake.adapters.search import Search, missing
from spanlake.labels import Labels, Threshold

if TYPE_CHECKING:
    from spanlake.rules import Rules

try:
    from langchain_core.documents import BaseDocumentTransformer, Document
except ImportError as error:
    raise missing("langchain-core", "langchain") from error


class SpanlakeEntityTransformer(BaseDocumentTransformer):
    """Returns documents whose `metadata[key]` lists their entities."""

    def __init__(
        self,
        extractor: Extractor,
        labels: Labels,
        threshold: Threshold | None = None,
        nested: bool = False,
        multi_label: bool = False,
        key: str = "entities",
        rules: "Rules | None" = None,
    ) -> None:
        """Takes the arguments of `Extractor.extract`."""
        self._search = Search(extractor, labels, threshold, nested, multi_label, rules)
        self._key = key

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Returns copies of the documents with their entities. Raises as `Extractor.extract` does."""
        found = self._search.rows(document.page_content for document in documents)
        return [
            document.model_copy(update={"metadata": document.metadata | {self._key: entities}})
            for document, entities in zip(documents, found, strict=True)
        ]
