"""What a request may ask for, over HTTP, streams and gRPC: labels of each text, UTF-16 offsets, redaction, rules."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from spanlake import Entity, Extractor, Rules, UserError
from spanlake.client import Client
from spanlake.redaction import KEYED, Redaction
from spanlake.serving.found import in_utf16

TEXTS = [
    "Ada met Charles Babbage in London",
    "\U0001f30a Marie Curie found radium in Warsaw \U0001f680 with Pierre",
    "half a pair \ud83d and Ada",
    "",
]
LABELS = ["person", "city"]
KEY = b"0123456789abcdef"
PII = {"rules": [{"label": "word", "pattern": r"\bto\b"}, {"label": "email", "kind": "email"}]}


@pytest.fixture(scope="module")
def client(
    tiny_model_dir: Path, serve_app: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_bytes(KEY)
    (key.parent / "pii.yaml").write_text(json.dumps(PII))
    settings = {"model": str(tiny_model_dir), "limits": {"labels": 3}, "redact_key_file": str(key)}
    url = serve_app(settings | {"rules": {"pii": str(key.parent / "pii.yaml")}})
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def extractor(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32")


def ask(client: httpx.Client, **asked: Any) -> httpx.Response:
    content = json.dumps({"texts": TEXTS, "labels": LABELS, "threshold": 0.3} | asked)
    return client.post("/v1/extract", content=content, headers={"content-type": "application/json"})


def ask_stream(client: httpx.Client, *lines: Any) -> list[Any]:
    content = "".join(json.dumps(line) + "\n" for line in lines)
    answer = client.post("/v1/extract/stream", content=content, headers={"content-type": "application/x-ndjson"})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.split("\n") if line]


def spans(results: list[Any]) -> list[list[tuple[int, int, str, str]]]:
    return [[(each["start"], each["end"], each["text"], each["label"]) for each in result] for result in results]


def of(expected: list[list[Entity]]) -> list[list[tuple[int, int, str, str]]]:
    return spans([[entity.to_dict() for entity in entities] for entities in expected])


# --- labels of each text ----------------------------------------------------------------------------------------------

OWN = [["radium"], {"place": "city", "who": "person"}, ["radium", "person"], ["city"]]


def test_each_text_may_have_labels_of_its_own(client: httpx.Client, extractor: Extractor):
    answer = ask(client, labels=OWN, nested=True).json()["results"]
    expected = extractor.extract(TEXTS, OWN, 0.3, nested=True)
    assert spans(answer) == of(expected)
    assert {"place", "radium"} <= {entity.label for entities in expected for entity in entities}


def test_thresholds_by_name_are_those_of_all_label_sets(client: httpx.Client, extractor: Extractor):
    thresholds = {"person": 0.2, "place": 0.6, "who": 0.4, "radium": 1.0, "city": 0.5}
    answer = ask(client, labels=OWN, threshold=thresholds).json()["results"]
    one_by_one = [
        extractor.extract([text], labels, {name: thresholds[name] for name in labels})[0]
        for text, labels in zip(TEXTS, OWN, strict=True)
    ]
    assert spans(answer) == of(one_by_one)
    assert of(extractor.extract(TEXTS, OWN, thresholds)) == of(one_by_one)
    with pytest.raises(UserError, match="threshold for 'nobody', which no text has"):
        extractor.extract(TEXTS, OWN, thresholds | {"nobody": 0.5})


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({"labels": OWN[:3]}, 422, "There are 3 lists of labels for 4 texts"),
        ({"labels": [["person"], [], ["a"], ["b"]]}, 422, "Text 1: There are no labels"),
        ({"labels": [["person"], [1], ["a"], ["b"]]}, 422, "labels.1.0: Input should be a valid string; it is 1"),
        ({"labels": [["a", "b", "c", "d"], ["a"], ["a"], ["a"]]}, 413, "There are 4 labels; at most 3 are allowed"),
        ({"labels": [["a"]] * 1001}, 413, "There are 1001 lists of labels; at most 1000 texts are allowed"),
        (
            {"labels": OWN, "threshold": {"person": 0.5}},
            422,
            "Text 0: The thresholds and the labels differ in 'radium'",
        ),
        ({"labels": [["a" * 1001]] * 4}, 413, "has 1001 characters; at most 1000 are allowed"),
        ({"offsets": "bytes"}, 422, "offsets: Input should be 'code_points' or 'utf16'; it is 'bytes'"),
        ({"redact": "stars"}, 422, "redact: Input should be 'label', 'hash', 'mask' or 'surrogate'; it is 'stars'"),
    ],
)
def test_what_is_refused(client: httpx.Client, asked: dict[str, Any], status: int, says: str):
    answer = ask(client, **asked)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_a_line_of_a_stream_may_have_labels_of_its_own(client: httpx.Client, extractor: Extractor):
    lines = [{"text": text, "labels": labels} for text, labels in zip(TEXTS, OWN, strict=True)]
    question = {"labels": LABELS, "threshold": 0.3}
    head, *found, end = ask_stream(client, question, *lines, TEXTS[0], {"text": "Ada", "labels": []}, TEXTS[1])
    assert head["model"]["name"] == "tiny" and end == {"done": True, "texts": 7}
    assert "There are no labels" in found[5]["error"]["message"]
    expected = extractor.extract([*TEXTS, TEXTS[0], TEXTS[1]], [*OWN, LABELS, LABELS], 0.3)
    assert spans([each["entities"] for each in found if "entities" in each]) == of(expected)


def test_thresholds_by_name_apply_to_those_labels_that_a_line_has(client: httpx.Client, extractor: Extractor):
    thresholds = {"person": 0.2, "city": 0.4}
    question = {"labels": ["person", "city"], "threshold": thresholds}
    _, own, other, _ = ask_stream(
        client, question, {"text": TEXTS[0], "labels": ["city"]}, {"text": TEXTS[0], "labels": ["fruit"]}
    )
    assert spans([own["entities"]]) == of(extractor.extract([TEXTS[0]], ["city"], 0.4))
    assert "differ in 'fruit'" in other["error"]["message"]


# --- offsets ----------------------------------------------------------------------------------------------------------


def test_offsets_in_utf16_cut_the_entities_out_of_a_javascript_string(client: httpx.Client):
    plain = ask(client, nested=True).json()["results"]
    answer = ask(client, nested=True, offsets="utf16").json()["results"]
    streamed = ask_stream(client, {"labels": LABELS, "threshold": 0.3, "nested": True, "offsets": "utf16"}, *TEXTS)
    assert [each["entities"] for each in streamed[1:-1]] == answer
    moved = 0
    for text, entities, before in zip(TEXTS, answer, plain, strict=True):
        units = text.encode("utf-16-le", "surrogatepass")
        for entity, same in zip(entities, before, strict=True):
            assert units[2 * entity["start"] : 2 * entity["end"]].decode("utf-16-le", "surrogatepass") == same["text"]
            assert entity["text"] == same["text"]
            moved += entity["start"] != same["start"]
    assert moved


def test_offsets_in_utf16_of_every_place():
    text = "a\U0001f30a\U0001f680b\uffffc\U00010000"
    entities = [Entity(i, j, text[i:j], "x", 1.0) for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
    units = text.encode("utf-16-le")
    for entity, same in zip(in_utf16(text, entities), entities, strict=True):
        assert units[2 * entity.start : 2 * entity.end].decode("utf-16-le") == same.text
    assert in_utf16(text, []) == []


# --- redaction --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["label", "hash", "mask", "surrogate"])
def test_redacted_texts_are_those_of_the_lake(client: httpx.Client, extractor: Extractor, style: str):
    redaction = Redaction(style, KEY if style in KEYED else None)
    found = extractor.extract(TEXTS, LABELS, 0.3)
    expected = [redaction.text(text, entities) for text, entities in zip(TEXTS, found, strict=True)]
    answer = ask(client, redact=style, offsets="utf16").json()
    assert answer["redacted"] == expected != TEXTS
    streamed = ask_stream(client, {"labels": LABELS, "threshold": 0.3, "redact": style}, *TEXTS)
    assert [each["redacted"] for each in streamed[1:-1]] == expected
    assert "redacted" not in ask(client).json()


def test_a_server_without_a_key_makes_no_hashes(
    tiny_model_dir: Path, serve_app: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SPANLAKE_REDACTION_KEY", raising=False)
    with httpx.Client(base_url=serve_app({"model": str(tiny_model_dir)})) as client:
        refused = ask(client, redact="hash")
        assert refused.status_code == 422
        assert "has no key for it" in refused.json()["error"]["message"]
        assert ask(client, redact="mask").status_code == 200


# --- adjacent entities ------------------------------------------------------------------------------------------------


def test_adjacent_entities_are_joined_on_request(client: httpx.Client, extractor: Extractor):
    texts = ["Ada Lovelace Curie Farley Ada London Paris Ada Curie", *TEXTS]
    apart, joined = (extractor.extract(texts, LABELS, 0.3, join_adjacent=join) for join in (False, True))
    assert len(joined[0]) < len(apart[0])
    answer = ask(client, texts=texts, join_adjacent=True).json()["results"]
    assert spans(answer) == of(joined)
    assert spans(ask(client, texts=texts, join_adjacent=False).json()["results"]) == of(apart)
    own = ask(client, texts=texts, labels=[LABELS] * len(texts), join_adjacent=True).json()["results"]
    assert spans(own) == of(joined)
    question = {"labels": LABELS, "threshold": 0.3, "join_adjacent": True}
    streamed = ask_stream(client, question, *texts, {"text": texts[0], "labels": LABELS})
    assert spans([each["entities"] for each in streamed[1:-1]]) == of([*joined, joined[0]])
    with Client(str(client.base_url)) as asker:
        assert of(asker.extract(texts, LABELS, 0.3, join_adjacent=True)) == of(joined)


@pytest.mark.parametrize("other", ["nested", "multi_label"])
def test_overlapping_entities_are_not_joined(other: str, client: httpx.Client):
    refused = ask(client, join_adjacent=True, **{other: True})
    assert refused.status_code == 422
    assert "only if entities do not overlap" in refused.json()["error"]["message"]


# --- rules ------------------------------------------------------------------------------------------------------------


def test_rules_find_what_they_find_in_python(client: httpx.Client, extractor: Extractor):
    texts = [*TEXTS, "Write to ada@example.org, Ada", "", "\u200b"]
    found = extractor.extract(texts, LABELS, 0.3, rules=Rules(PII))
    assert {entity.source for entities in found for entity in entities} == {"model", "rule"}
    answer = ask(client, texts=texts, rules="pii", redact="label").json()
    fields = [[(each["start"], each["label"], each["source"]) for each in own] for own in answer["results"]]
    assert fields == [[(each.start, each.label, each.source) for each in own] for own in found]
    assert answer["redacted"][len(TEXTS)].count("[EMAIL]") == 1
    streamed = ask_stream(client, {"labels": LABELS, "threshold": 0.3, "rules": "pii"}, *texts)
    assert [each["entities"] for each in streamed[1:-1]] == answer["results"]
    without = ask(client).json()["results"]
    assert any(without) and not any("source" in each for own in without for each in own)


def test_rules_that_the_server_lacks_are_refused(client: httpx.Client):
    refused = ask(client, rules="phi")
    assert refused.status_code == 422
    assert refused.json()["error"]["message"] == "The rules 'phi' are not on this server; the rules are pii."


def test_the_client_names_rules(client: httpx.Client):
    with Client(str(client.base_url)) as asker:
        [found] = asker.extract(["Write to ada@example.org"], LABELS, 1.0, rules="pii")
        assert [(entity.label, entity.source) for entity in found] == [("word", "rule"), ("email", "rule")]
        assert asker.redact(["Write to ada@example.org"], LABELS, threshold=1.0, rules="pii") == [
            "Write [WORD] [EMAIL]"
        ]
