"""A spaCy component, `spanlake`, which adds entities to documents."""

from collections.abc import Iterable, Iterator

from spanlake import Entity, Extractor
from spanlake.adapters.search import Search, missing
from spanlake.inference.settings import read_rules

try:
    from spacy.language import Language
    from spacy.tokens import Doc, Span, SpanGroup
    from spacy.util import filter_spans, minibatch
except ImportError as error:
    raise missing("spaCy", "spacy") from error


class EntityFinder:
    """Writes the entities of a document to `doc.spans[spans_key]` and, if asked, to `doc.ents`.

    Spans of spaCy begin and end at its tokens. An entity that begins or ends inside a token gets the span of all its
    tokens. The attributes of the group hold each entity as the model found it: `doc.spans[spans_key].attrs["entities"]`
    has dictionaries with `start`, `end`, `text`, `label`, `score` and, with rules, `source`, in the order of the spans.
    """

    def __init__(self, search: Search, spans_key: str, set_ents: bool) -> None:
        self.search = search
        self.spans_key = spans_key
        self.set_ents = set_ents

    def __call__(self, doc: Doc) -> Doc:
        [found] = self.search.found([doc.text])
        return self._annotated(doc, found)

    def pipe(self, stream: Iterable[Doc], batch_size: int = 128) -> Iterator[Doc]:
        """Yields the documents with their entities. A batch of documents shares forward passes of the model."""
        for docs in minibatch(stream, batch_size):
            for doc, found in zip(docs, self.search.found([doc.text for doc in docs]), strict=True):
                yield self._annotated(doc, found)

    def _annotated(self, doc: Doc, found: list[Entity]) -> Doc:
        spans = [_span(doc, entity) for entity in found]
        attributes = {"entities": [entity.to_dict() for entity in found]}
        doc.spans[self.spans_key] = SpanGroup(doc, name=self.spans_key, spans=spans, attrs=attributes)
        if self.set_ents:  # which cannot overlap; the longest wins, and the group above holds all
            doc.ents = filter_spans([*spans, *doc.ents])
        return doc


def _span(doc: Doc, entity: Entity) -> Span:
    return doc.char_span(entity.start, entity.end, label=entity.label, alignment_mode="expand")


@Language.factory(
    "spanlake",
    default_config={
        "model": "mini",
        "threshold": None,
        "nested": False,
        "multi_label": False,
        "rules": None,
        "device": "auto",
        "precision": "auto",
        "spans_key": "spanlake",
        "set_ents": True,
    },
    assigns=["doc.ents", "doc.spans"],
)
def make(
    nlp: Language,
    name: str,
    labels: list[str] | dict[str, str],
    model: str,
    threshold: float | dict[str, float] | None,
    nested: bool,
    multi_label: bool,
    rules: str | None,
    device: str,
    precision: str,
    spans_key: str,
    set_ents: bool,
) -> EntityFinder:
    """Returns the component of `nlp.add_pipe("spanlake", config={"labels": […]})`. `rules` is a file of rules."""
    extractor = Extractor.load(model, device=device, precision=precision)
    search = Search(extractor, labels, threshold, nested, multi_label, read_rules(rules) if rules else None)
    return EntityFinder(search, spans_key, set_ents)
