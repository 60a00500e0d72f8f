"""Each adapter finds what the Extractor finds, at the same offsets, inside the real library."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commands import ROOT

from spanlake import Entity, Extractor, UserError
from spanlake.adapters.search import Search
from spanlake.rules import Rules

from .conftest import LABELS, TEXTS

Library = Callable[[str, str], ModuleType]


def rows(expected: list[list[Entity]]) -> list[list[dict[str, Any]]]:
    return [[entity.to_dict() for entity in entities] for entities in expected]


def same(found: Any, expected: list[list[Entity]]) -> None:
    """Scores may differ by rounding, as texts share other batches."""
    for ours, theirs in zip(found, rows(expected), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert dict(one) == other | {"score": pytest.approx(other["score"], abs=1e-5)}


def test_each_adapter_is_short():
    files = sorted((ROOT / "platform/spanlake/adapters").glob("*.py"))
    assert len(files) == 9
    for file in files:
        assert len(file.read_text(encoding="utf-8").splitlines()) < 100, file


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    for adapter, library in (("spacy", "spacy"), ("polars", "polars"), ("presidio", "presidio_analyzer")):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"spanlake.adapters.{adapter}", raising=False)
        with pytest.raises(ImportError, match=rf"is not installed: pip install 'spanlake\[{adapter}\]'"):
            __import__(f"spanlake.adapters.{adapter}")


def test_texts_that_are_absent_have_no_entities_and_others_are_refused(
    extractor: Extractor, expected: list[list[Entity]]
):
    search = Search(extractor, LABELS, 0.3)
    none, *found, last = search.rows([None, *TEXTS, None])
    assert none is None and last is None
    same(found, expected)
    with pytest.raises(UserError, match="Row 1 of the texts is 7"):
        search.rows(["Ada", 7])


# --- spaCy ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(library: Library, tiny_model_dir: Path) -> Any:
    spacy = library("spacy", "spacy")
    import spanlake.adapters.spacy  # noqa: F401  registers the component

    nlp = spacy.blank("en")
    config = {"model": str(tiny_model_dir), "labels": LABELS, "threshold": 0.3, "device": "cpu", "precision": "float32"}
    nlp.add_pipe("spanlake", config=config)
    return nlp


def test_spacy(pipeline: Any, expected: list[list[Entity]], tmp_path: Path):
    for docs in (list(pipeline.pipe(TEXTS, batch_size=3)), [pipeline(text) for text in TEXTS]):
        same([doc.spans["spanlake"].attrs["entities"] for doc in docs], expected)
        for doc, entities in zip(docs, expected, strict=True):
            for span, entity in zip(doc.spans["spanlake"], entities, strict=True):
                assert span.label_ == entity.label
                assert span.start_char <= entity.start and entity.end <= span.end_char
                tokens = {token.idx for token in span} | {token.idx + len(token) for token in span}
                if {entity.start, entity.end} <= tokens:
                    assert span.text == entity.text
            assert {span.text for span in doc.ents} <= {span.text for span in doc.spans["spanlake"]}
        assert docs[0].ents
    inside = [
        entity
        for doc, entities in zip(docs, expected, strict=True)
        for entity in entities
        if doc.char_span(entity.start, entity.end) is None
    ]
    assert inside  # some entity ends inside a token of spaCy, and is there all the same


def test_spacy_saves_loads_and_works_in_processes(pipeline: Any, expected: list[list[Entity]], tmp_path: Path):
    import spacy

    pipeline.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    docs = list(again.pipe(TEXTS))
    same([doc.spans["spanlake"].attrs["entities"] for doc in docs], expected)
    stored = spacy.tokens.Doc(again.vocab).from_bytes(docs[0].to_bytes())
    same([stored.spans["spanlake"].attrs["entities"]], expected[:1])
    component = pickle.loads(pickle.dumps(pipeline.get_pipe("spanlake")))
    same([component(again.make_doc(TEXTS[0])).spans["spanlake"].attrs["entities"]], expected[:1])


def test_spacy_without_labels_says_so(library: Library):
    spacy = library("spacy", "spacy")
    import spanlake.adapters.spacy  # noqa: F401

    with pytest.raises(Exception, match="labels"):
        spacy.blank("en").add_pipe("spanlake")


# --- Presidio ---------------------------------------------------------------------------------------------------------


def test_presidio(library: Library, extractor: Extractor):
    presidio = library("presidio_analyzer", "presidio")
    spacy = library("spacy", "presidio")
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    from spanlake.adapters.presidio import SpanlakeRecognizer

    class Blank(SpacyNlpEngine):  # type: ignore[misc]
        """No model of spaCy is needed for the recogniser."""

        def __init__(self) -> None:
            super().__init__()
            self.nlp = {"en": spacy.blank("en")}

    entities = {"PERSON": "person", "LOCATION": "city"}
    registry = presidio.RecognizerRegistry(supported_languages=["en"])
    registry.add_recognizer(SpanlakeRecognizer(extractor, entities, threshold=0.3))
    analyzer = presidio.AnalyzerEngine(registry=registry, nlp_engine=Blank(), supported_languages=["en"])
    for text in TEXTS:
        [expected] = extractor.extract([text], entities, 0.3)
        found = analyzer.analyze(text=text, language="en")
        assert sorted((each.start, each.end, each.entity_type) for each in found) == sorted(
            (each.start, each.end, each.label) for each in expected
        )
    [expected] = extractor.extract([TEXTS[0]], {"PERSON": "person"}, 0.3)
    found = analyzer.analyze(text=TEXTS[0], language="en", entities=["PERSON"], return_decision_process=True)
    assert {TEXTS[0][each.start : each.end] for each in found} == {each.text for each in expected}
    assert all(each.analysis_explanation.recognizer == "SpanlakeRecognizer" for each in found)


# --- Haystack and LangChain -------------------------------------------------------------------------------------------


def test_haystack(library: Library, tiny_model_dir: Path, expected: list[list[Entity]]):
    haystack = library("haystack", "haystack")
    from spanlake.adapters.haystack import SpanlakeEntityExtractor

    pipeline = haystack.Pipeline()
    finder = SpanlakeEntityExtractor(LABELS, str(tiny_model_dir), 0.3, device="cpu", precision="float32")
    pipeline.add_component("entities", finder)
    for each in (pipeline, haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=[finder.__module__])):
        documents = [haystack.Document(content=text, meta={"page": 1}) for text in TEXTS] + [haystack.Document()]
        found = each.run({"entities": {"documents": documents}})["entities"]["documents"]
        same([document.meta["named_entities"] for document in found], [*expected, []])
        assert found[0].meta["page"] == 1 and [each.id for each in found] == [each.id for each in documents]
        assert "named_entities" not in documents[0].meta


def test_langchain(library: Library, extractor: Extractor, expected: list[list[Entity]]):
    documents_of = library("langchain_core.documents", "langchain")
    from spanlake.adapters.langchain import SpanlakeEntityTransformer

    documents = [documents_of.Document(page_content=text, metadata={"page": 1}, id="7") for text in TEXTS]
    found = SpanlakeEntityTransformer(extractor, LABELS, 0.3).transform_documents(documents)
    same([document.metadata["entities"] for document in found], expected)
    assert (found[0].metadata["page"], found[0].id, documents[0].metadata) == (1, "7", {"page": 1})


# --- rules ------------------------------------------------------------------------------------------------------------

PII = {"rules": [{"label": "email", "kind": "email"}]}
MAILS = ["Ada met Charles Babbage: write to ada@example.org", "Ada"]


@pytest.fixture
def mails(extractor: Extractor) -> list[list[Entity]]:
    found = extractor.extract(MAILS, LABELS, 0.3, rules=Rules(PII))
    assert {entity.source for entity in found[0]} == {"model", "rule"}
    return found


def test_rules_in_pandas(library: Library, extractor: Extractor, mails: list[list[Entity]]):
    pd = library("pandas", "pandas")
    from spanlake.adapters.pandas import find_entities

    same(find_entities(pd.Series(MAILS), extractor, LABELS, 0.3, rules=Rules(PII)), mails)


def test_rules_in_langchain(library: Library, extractor: Extractor, mails: list[list[Entity]]):
    documents = library("langchain_core.documents", "langchain")
    from spanlake.adapters.langchain import SpanlakeEntityTransformer

    finder = SpanlakeEntityTransformer(extractor, LABELS, 0.3, rules=Rules(PII))
    found = finder.transform_documents([documents.Document(page_content=text) for text in MAILS])
    same([document.metadata["entities"] for document in found], mails)


def test_rules_in_polars(library: Library, extractor: Extractor, mails: list[list[Entity]]):
    pl = library("polars", "polars")
    from spanlake.adapters.polars import ENTITIES_AND_SOURCE, find_entities

    entities = find_entities(pl.col("text"), extractor, LABELS, 0.3, rules=Rules(PII))
    found = pl.DataFrame({"text": MAILS}).with_columns(entities)
    assert found.schema["entities"] == ENTITIES_AND_SOURCE
    same(found["entities"].to_list(), mails)


def test_rules_in_spark(spark: Any, extractor: Extractor, mails: list[list[Entity]]):
    from spanlake.adapters.spark import entities_udf

    frame = spark.createDataFrame(list(enumerate(MAILS)), "place int, text string")
    find = entities_udf(extractor, LABELS, 0.3, rules=Rules(PII))
    found = frame.withColumn("entities", find("text")).orderBy("place").collect()
    same([[entity.asDict() for entity in row.entities] for row in found], mails)


@pytest.fixture
def file_of_rules(tmp_path: Path) -> str:
    (tmp_path / "pii.json").write_text(json.dumps(PII))
    return str(tmp_path / "pii.json")


def test_a_file_of_rules_in_spacy(
    library: Library, tiny_model_dir: Path, file_of_rules: str, mails: list[list[Entity]]
):
    spacy = library("spacy", "spacy")
    import spanlake.adapters.spacy  # noqa: F401

    config = {"model": str(tiny_model_dir), "labels": LABELS, "threshold": 0.3, "rules": file_of_rules}
    nlp = spacy.blank("en")
    nlp.add_pipe("spanlake", config=config | {"device": "cpu", "precision": "float32"})
    same([doc.spans["spanlake"].attrs["entities"] for doc in nlp.pipe(MAILS)], mails)


def test_a_file_of_rules_in_haystack(
    library: Library, tiny_model_dir: Path, file_of_rules: str, mails: list[list[Entity]]
):
    haystack = library("haystack", "haystack")
    from spanlake.adapters.haystack import SpanlakeEntityExtractor

    options = {"device": "cpu", "precision": "float32", "rules": file_of_rules}
    finder = SpanlakeEntityExtractor(LABELS, str(tiny_model_dir), 0.3, **options)
    for each in (finder, SpanlakeEntityExtractor(**finder.to_dict()["init_parameters"])):
        found = each.run([haystack.Document(content=text) for text in MAILS])["documents"]
        same([document.meta["named_entities"] for document in found], mails)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_pandas(library: Library, extractor: Extractor, expected: list[list[Entity]]):
    pd = library("pandas", "pandas")
    from spanlake.adapters.pandas import find_entities

    texts = pd.Series([*TEXTS, None, float("nan")], index=list("abcdef"), name="text")
    found = find_entities(texts, extractor, LABELS, 0.3)
    assert list(found.index) == list("abcdef") and list(found[-2:]) == [None, None]
    same(found[:-2], expected)
    assert len(find_entities(texts[:0], extractor, LABELS)) == 0


def test_polars(library: Library, extractor: Extractor, expected: list[list[Entity]]):
    pl = library("polars", "polars")
    from spanlake.adapters.polars import ENTITIES, find_entities

    frame = pl.DataFrame({"text": [*TEXTS, None]})
    asked = find_entities(pl.col("text"), extractor, LABELS, 0.3)
    for found in (frame.with_columns(asked), frame.lazy().with_columns(asked).collect()):
        assert found.schema["entities"] == ENTITIES
        same(found["entities"].to_list()[:-1], expected)
        assert found["entities"].to_list()[-1] is None
    entity = pl.col("entities").struct.field
    cut = (
        found.explode("entities")
        .drop_nulls("entities")
        .select(
            pl.col("text").str.slice(entity("start"), entity("end") - entity("start")).alias("cut"),
            entity("text").alias("own"),
        )
    )
    assert cut["cut"].to_list() == cut["own"].to_list() and len(cut) == sum(map(len, expected))
    assert frame[:0].with_columns(asked).schema["entities"] == ENTITIES


def test_spark(spark: Any, extractor: Extractor, expected: list[list[Entity]]):
    from spanlake.adapters.spark import entities_udf

    frame = spark.createDataFrame(
        [(place, text) for place, text in enumerate([*TEXTS, None])], "place int, text string"
    )
    find = entities_udf(extractor, LABELS, 0.3)
    found = frame.repartition(2).withColumn("entities", find("text")).orderBy("place").cache()
    values = [row.entities for row in found.collect()]
    assert values[-1] is None
    same([[entity.asDict() for entity in entities] for entities in values[:-1]], expected)
    cut = found.selectExpr("text", "explode(entities) as entity").selectExpr(
        "substring(text, entity.start + 1, entity.end - entity.start) as cut", "entity.text as own"
    )
    assert all(row.cut == row.own for row in cut.collect())
