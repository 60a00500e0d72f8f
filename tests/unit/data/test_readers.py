"""Every format of annotated texts, from files, directories and data sets of the `datasets` library."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT

from spanlake.data.examples import read_sentences
from spanlake.data.readers import BadRecord, read_source
from spanlake.data.records import Parsed
from spanlake.data.tags import spans_of_tags
from spanlake.errors import UserError

TEXT = "Ada met Marie Curie in New York"
FOUND = [("Ada", "person"), ("Marie Curie", "person"), ("New York", "city")]
GLINER = {"tokenized_text": TEXT.split(), "ner": [[0, 0, "person"], [2, 3, "person"], [5, 6, "city"]]}
TAGS = ["B-person", "O", "B-person", "I-person", "O", "B-city", "I-city"]


def conversation(text: str, answers: dict[str, str]) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Text: {text}"}, {"from": "gpt", "value": "I've read this text."}]
    for label, answer in answers.items():
        turns.append({"from": "human", "value": f"What describes {label} in the text?"})
        turns.append({"from": "gpt", "value": answer})
    return {"id": "ner_0", "conversations": turns}


CONVERSATION = conversation(TEXT, {"person": '["Marie Curie", "Ada"]', "city": '["New York"]', "drug": "[]"})
RECORDS = {
    "conversations": CONVERSATION,
    "gliner": GLINER,
    "tagged": {"tokens": TEXT.split(), "ner_tags": TAGS},
    "spans": {
        "tokens": TEXT.split(),
        "entities": [
            {"type": "person", "start": 0, "end": 1},
            {"type": "person", "start": 2, "end": 4},
            {"type": "city", "start": 5, "end": 7},
        ],
    },
    "sentences": {
        "sentence": TEXT,
        "entities": [
            {"name": "Ada", "type": "person", "pos": [0, 3]},
            {"name": "Marie Curie", "type": "person", "pos": [8, 19]},
            {"name": "New York", "type": "city", "pos": [23, 31]},
        ],
    },
    "prepared": {
        "text": TEXT,
        "mentions": [
            {"start": 0, "end": 3, "label": "person"},
            {"start": 8, "end": 19, "label": "person"},
            {"start": 23, "end": 31, "label": "city"},
        ],
    },
}


def examples(source: str | Path, form: Any = "auto") -> list[list[tuple[str, str]]]:
    found = []
    for outcome in read_source(str(source), form):
        assert isinstance(outcome, Parsed), outcome
        example = outcome.example
        found.append([(example.text[m.start : m.end], m.label) for m in example.mentions])
    return found


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


NAMES = ("a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz", "a.parquet")
# Parquet has no lists of mixed types, which the gliner format needs.
KINDS = [(form, name) for form in RECORDS for name in NAMES if (form, name) != ("gliner", "a.parquet")]


@pytest.mark.parametrize(("form", "name"), KINDS)
def test_every_format_is_read_from_every_kind_of_file(tmp_path: Path, form: str, name: str) -> None:
    records = [RECORDS[form]] * 3
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), path)
    elif ".jsonl" in name:
        write(path, "\n".join(map(json.dumps, records)) + "\n\n")
    else:
        write(path, json.dumps(records, indent=1))
    assert examples(path) == [FOUND] * 3 == examples(tmp_path) == examples(path, form)
    other = "gliner" if form != "gliner" else "tagged"
    assert all(isinstance(outcome, BadRecord) for outcome in read_source(str(path), other))


def test_questions_without_an_answer_are_negatives() -> None:
    """So is what a record states: `negatives` in our files, `ner_negatives` in the library's."""
    from spanlake.data.records import parse_record

    assert parse_record(CONVERSATION).example.negatives == ("drug",)
    assert parse_record({**GLINER, "negatives": ["drug"]}).example.negatives == ("drug",)
    assert parse_record({**GLINER, "ner_negatives": ["drug"]}).example.negatives == ("drug",)


CONLL = """-DOCSTART- -X- O O

# sent_id = 1
Ada NNP B-person
met VBD O
Marie NNP B-person
Curie NNP I-person
in IN O
New NNP B-city
York NNP I-city

# O
Rome B-city

Oslo
lies O

end O"""


def test_conll_files_and_their_bad_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", CONLL)
    outcomes = list(read_source(str(path)))
    good = [outcome.example for outcome in outcomes if isinstance(outcome, Parsed)]
    assert [example.text for example in good] == [TEXT, "# Rome", "end"]
    assert [(good[0].text[m.start : m.end], m.label) for m in good[0].mentions] == FOUND
    (bad,) = (outcome for outcome in outcomes if isinstance(outcome, BadRecord))
    assert (bad.where, bad.reason) == (f"{path}, line 15", "line 15 does not end in a tag such as O or B-person")


def test_the_wording_of_a_mention_may_differ_in_case_and_spaces(tmp_path: Path) -> None:
    record = {"sentence": "ada  lovelace", "entities": [{"name": "Ada Lovelace", "type": "person", "pos": [0, 13]}]}
    assert examples(write(tmp_path / "a.json", json.dumps([record]))) == [[("ada  lovelace", "person")]]


GENIA = """IL-2\tB-DNA\tB-protein\tO
gene\tI-DNA\tO\tO
expression\tO\tO\tO

CD28 NN B-NP B-protein
"""


def test_columns_of_tags_are_levels_of_nested_mentions(tmp_path: Path) -> None:
    assert examples(write(tmp_path / "a.iob2", GENIA)) == [
        [("IL-2 gene", "DNA"), ("IL-2", "protein")],
        [("CD28", "protein")],
    ]
    record = {"tokens": ["IL-2", "gene"], "ner_tags": [["B-DNA", "B-DNA"], ["I-DNA", "I-DNA"]]}
    assert examples(write(tmp_path / "same.jsonl", json.dumps(record))) == [[("IL-2 gene", "DNA")]]
    chunks = "The B-NP O\nunion I-NP B-org\nfell B-VP O\n"
    assert examples(write(tmp_path / "chunks.conll", chunks)) == [[("union", "org")]]


def test_tabs_are_the_only_separators_of_a_line_that_has_them(tmp_path: Path) -> None:
    lines = ["# id 5\tdomain=en", "12 000\tNUM\tB-AMOUNT ", "EUR\tNOUN\tI-AMOUNT\t", "", "\t", "New York City B-place"]
    outcomes = list(read_source(str(write(tmp_path / "a.conll", "\n".join(lines)))))
    found = [outcome.example for outcome in outcomes if isinstance(outcome, Parsed)]
    assert [example.text for example in found] == ["12 000 EUR", "New"]
    assert [(m.start, m.end, m.label) for m in found[0].mentions] == [(0, 10, "AMOUNT")]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-x I-x O B-x", [(0, 1, "x"), (3, 3, "x")]),
        ("I-x I-x B-x I-y", [(0, 1, "x"), (2, 2, "x"), (3, 3, "y")]),  # the older BIO
        ("S-x B-x E-x S-y B-y I-y E-y", [(0, 0, "x"), (1, 2, "x"), (3, 3, "y"), (4, 6, "y")]),
        ("U-x B-x L-x O", [(0, 0, "x"), (1, 2, "x")]),
        ("E-x I-x B-x", [(0, 0, "x"), (1, 1, "x"), (2, 2, "x")]),  # out of order, but nothing is lost
        ("x x O y-z y-z x", [(0, 1, "x"), (3, 4, "y-z"), (5, 5, "x")]),  # no prefixes
        ("O O", []),
    ],
)
def test_tags_of_all_schemes(tags: str, spans: list[tuple[int, int, str]]) -> None:
    assert list(spans_of_tags(tags.split())) == spans


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("[1]", "it is a list, not an object"),
        ("{", "it is not JSON"),
        ('{"a": 1}', "its keys ['a'] do not match any format"),
        ('{"tokenized_text": ["a"]}', "KeyError: 'ner'"),
        ('{"tokenized_text": ["a"], "ner": [[0, 1, "x"]]}', "mention 0..1 outside 1 words"),
        ('{"tokenized_text": ["a"], "ner": [[0, 0, " "]]}', "the label ' ' is not a text"),
        ('{"tokenized_text": [3], "ner": []}', "TypeError"),
        ('{"tokenized_text": [], "ner": []}', "its text is empty"),
        ('{"tokens": ["a"], "ner_tags": ["O", "O"]}', "it has 1 words but 2 tags"),
        ('{"tokens": ["a"], "ner_tags": [3]}', "the data set does not name its tags"),
        ('{"text": "Ada met Bo."}', "its keys ['text'] do not match any format: it has no mentions"),
        ('{"tokens": ["a", "b"], "ner_tags": [["O"], ["O", "O"]]}', "its words have different numbers of tags"),
        ('{"tokens": ["a"], "entities": [{"type": "x", "start": 0, "end": 2}]}', "mention 0..1 outside 1 words"),
        ('{"tokens": ["a"], "entities": [{"type": "x", "start": 0, "end": 0}]}', "mention 0..-1 outside 1 words"),
        ('{"tokens": ["a"], "ner_tags": [null]}', "the tag None is neither a name nor a number"),
        ('{"tokens": ["a", "b"], "ner_tags": ["B-x", "X-x"]}', "the tag 'X-x' is not O and has no prefix"),
        ('{"tokens": ["a", "b"], "ner_tags": ["B-x", "x"]}', "the tag 'x' is not O and has no prefix"),
        ('{"tokens": ["a", "b"], "ner_tags": ["x", "o"]}', "the tag 'o' is not O"),
        ('{"tokens": ["a"], "ner_tags": ["B-"]}', "the tag 'B-' is not O"),
        ('{"tokens": ["a", "b"], "ner_tags": ["0", "3"]}', "the tag '0' is not O"),
        ('{"tokens": ["a"], "ner_tags": [""]}', "the tag '' is not O"),
        ('{"tokens": ["a", ""], "ner_tags": ["O", "B-x"]}', "mention 1..1 is of an empty word"),
        ('{"tokenized_text": ["a", " "], "ner": [[1, 1, "x"]]}', "mention 2..3 has no visible character"),
        ('{"sentence": "a", "entities": [{"type": "x", "pos": [0, 2]}]}', "mention 0..2 outside 1 characters"),
        (
            '{"sentence": "Ada met Bo.", "entities": [{"name": "Bo", "type": "x", "pos": [7, 9]}]}',
            "mention 7..9 is said to read 'Bo', but there is ' B'",
        ),
        (
            '{"text": "Ada met Bo.", "mentions": [{"start": 8, "end": 11, "label": "x", "text": "Bo"}]}',
            "mention 8..11 is said to read 'Bo', but there is 'Bo.'",
        ),
        ('{"text": "a", "mentions": [{"start": 1, "end": 1, "label": "x"}]}', "mention 1..1 outside 1 characters"),
        ('{"text": "a", "mentions": [{"start": 0, "end": 1, "types": []}]}', "mention 0..1 has an empty list of types"),
        ('{"text": "a", "mentions": [[0, 1, ["x", ""]]]}', "the label '' is not a text"),
        ('{"text": "a", "mentions": [[0, 1]]}', "not enough values"),
        ('{"text": null, "mentions": []}', "its text is None"),
        ('{"conversations": []}', "turns do not alternate"),
        (json.dumps(conversation("x", {"y": "[1]"})), "not a list of texts"),
        (json.dumps(conversation("x", {"y": "none"})), "Expecting value"),
        (json.dumps(conversation("x", {"y": "[]"})).replace("What describes", "Who is"), "not a question of the form"),
        (json.dumps(conversation("x", {})).replace("Text: ", ""), "does not begin with 'Text:'"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_reason(tmp_path: Path, record: str, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", f"{json.dumps(GLINER)}\n{record}\n{json.dumps(GLINER)}\n")
    good, bad, after = read_source(str(path))
    assert isinstance(good, Parsed) and isinstance(after, Parsed) and isinstance(bad, BadRecord)
    assert bad.where == f"{path}, line 2" and reason in bad.reason


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xff{"a": 1}\n' + json.dumps(GLINER).encode())
    bad, good = read_source(str(path))
    assert isinstance(bad, BadRecord) and "not JSON" in bad.reason and isinstance(good, Parsed)


def test_a_json_list_is_read_in_parts_whatever_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{**GLINER, "note": "é中" * size} for size in (0, 1, 7, 300, 2)]
    path = write(tmp_path / "a.json", json.dumps(records, ensure_ascii=False, indent=2))
    for chunk in (1, 2, 17, 1 << 20):
        monkeypatch.setattr("spanlake.data.readers._CHUNK", chunk)
        assert examples(path) == [FOUND] * 5
    write(path, json.dumps(records)[:-30])
    with pytest.raises(UserError, match="breaks off after record 4"):
        list(read_source(str(path)))
    assert examples(write(path, "[]")) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"", "does not end in one of"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.conll", b"\xff O\n", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_source(str(tmp_path / name)))
    assert name in str(caught.value)


def test_a_directory_is_read_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, word in (("b.jsonl", "two"), ("a.json", "one"), ("sub/c.jsonl.gz", "three")):
        record = json.dumps({"tokenized_text": [word], "ner": [[0, 0, "n"]]})
        write(tmp_path / name, record if "l" in name else f"[{record}]")
    write(tmp_path / "README.md", "x")
    assert [mentions[0][0] for mentions in examples(tmp_path)] == ["one", "two", "three"]
    with pytest.raises(UserError, match="no file or directory"):
        list(read_source(str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no file"):
        list(read_source(str(tmp_path / "empty")))


def test_data_sets_with_class_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-person", "I-person", "B-city", "I-city"]
    features = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")), ner_tags=datasets.Sequence(datasets.ClassLabel(names=names))
    )
    rows = {"tokens": [TEXT.split()], "ner_tags": [[names.index(tag) for tag in TAGS]]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=saved, validation=saved).save_to_disk(tmp_path / "split")
    assert examples(tmp_path / "one") == examples(tmp_path / "split") == [FOUND]
    assert examples(f"{tmp_path / 'split'}:validation") == [FOUND]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        list(read_source(f"{tmp_path / 'split'}:test"))


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as gives one data set of one file."""

    name, commit = "Universal-NER/Pile-NER-type", "0" * 40
    content = json.dumps([CONVERSATION]).encode()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._answer(json.dumps([self._file()] if "train.json" in asked else []).encode())

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/datasets/{self.name}/tree/"):
            self._answer(json.dumps([self._file()]).encode())
        elif path.startswith(f"/api/datasets/{self.name}"):
            told = {"id": self.name, "sha": self.commit, "siblings": [{"rfilename": "train.json"}], "tags": []}
            self._answer(json.dumps({**told, "private": False, "gated": False, "disabled": False}).encode())
        elif path.startswith(f"/datasets/{self.name}/resolve/") and path.endswith("/train.json"):
            self._answer(self.content)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _file(self) -> dict[str, Any]:
        return {"type": "file", "path": "train.json", "size": len(self.content), "oid": "1" * 40}

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": len(body), "ETag": '"1"', "X-Repo-Commit": self.commit}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_data_set_comes_from_the_hub_by_its_id(tmp_path: Path, hub: str) -> None:
    """In a process of its own: the client reads its settings when it is imported."""
    pytest.importorskip("datasets")
    program = """if True:
        import sys
        from spanlake.data.readers import read_source
        for outcome in read_source("Universal-NER/Pile-NER-type"):
            print([(outcome.example.text[m.start : m.end], m.label) for m in outcome.example.mentions])
    """
    root = ROOT / "platform"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub}
    environment |= {"PYTHONPATH": str(root), "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.strip() == str(FOUND), done.stderr


def test_a_data_set_that_the_hub_does_not_give_is_named() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match="'no-such/data-set'.*fetch its files"):
        list(read_source("no-such/data-set"))


def test_sentences_of_a_benchmark_name_the_bad_record(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", '[{"sentence": "a", "entities": []}, {"sentence": "b"}]')
    with pytest.raises(UserError, match="Record 1 of"):
        read_sentences(path)
