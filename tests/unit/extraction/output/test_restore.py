"""Redaction that the key undoes: what the vault hides, what it gives back, and what is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanlake import UserError, cli
from spanlake.extraction.output.audit import audit
from spanlake.extraction.output.layout import Layout
from spanlake.extraction.output.ledger import prepare
from spanlake.redaction import STYLES, Redaction
from spanlake.redaction.vault import Edit, seal, unseal

from .test_layout import TEXTS, extract, make_request, options

KEY = b"0123456789abcdef"


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "key").write_bytes(KEY)
    return str(tmp_path / "key")


def table(directory: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(directory.glob("*.parquet")))


def restored(tmp_path: Path, key_file: str) -> pa.Table:
    assert cli.main(["restore", str(tmp_path / "out"), str(tmp_path / "back"), "--redact-key-file", key_file]) == 0
    return table(tmp_path / "back")


@pytest.mark.parametrize("style", STYLES)
def test_a_dropped_text_comes_back(tmp_path: Path, key_file: str, style: str) -> None:
    ledger = extract(make_request(tmp_path, Layout(redaction=Redaction(style, KEY, vault=True), drop_text=True)))
    hidden = table(tmp_path / "out")
    assert hidden.column_names == ["id", "more", "redacted_text", "vault", "entities", "error"]
    for file in (tmp_path / "out").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert not any(word in content for word in (b"Ada", b"Bob", "Éva".encode(), KEY))
    assert audit(ledger).complete
    back = restored(tmp_path, key_file)
    assert back.column_names == ["id", "more", "text", "entities", "error"]
    assert back.column("text").to_pylist() == TEXTS
    assert [entity["text"] for row in back.column("entities").to_pylist() for entity in row or ()] == [
        "Ada",
        "Bob",
        "Éva",
        "Ida",
    ]


def test_a_text_that_the_output_keeps_stays(tmp_path: Path, key_file: str) -> None:
    extract(make_request(tmp_path, Layout(redaction=Redaction("mask", KEY, vault=True))))
    back = restored(tmp_path, key_file)
    assert back.column_names == ["id", "text", "more", "entities", "error"]
    assert back.column("text").to_pylist() == TEXTS


def test_a_text_among_columns_that_were_not_chosen_comes_back(tmp_path: Path, key_file: str) -> None:
    layout = Layout(redaction=Redaction("label", KEY, vault=True), columns=("id",))
    extract(make_request(tmp_path, layout))
    assert restored(tmp_path, key_file).select(["id", "text"]).to_pylist() == [
        {"id": number, "text": text} for number, text in enumerate(TEXTS)
    ]


def test_the_same_run_writes_the_same_vault(tmp_path: Path) -> None:
    layout = Layout(redaction=Redaction("label", KEY, vault=True), drop_text=True)
    vaults = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        extract(make_request(tmp_path / name, layout, pa.table({"text": ["Ada met Bob"] * 2})))
        vaults.append(table(tmp_path / name / "out").column("vault").to_pylist())
    assert vaults[0] == vaults[1]
    assert len({*vaults[0]}) == 2  # equal rows cannot be recognized


def test_a_vault_is_a_part_of_the_run(tmp_path: Path) -> None:
    extract(make_request(tmp_path, Layout(redaction=Redaction("label", KEY, vault=True))))
    with pytest.raises(UserError, match="vault true in the output, false requested"):
        prepare(make_request(tmp_path, Layout(redaction=Redaction("label"))))


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=5), max_size=5))
def test_a_seal_opens_for_its_text_and_key_alone(redacted: str, originals: list[str]) -> None:
    edits = [Edit(0, 0, original) for original in originals]
    sealed = seal(KEY, redacted, edits, "a\0" + "0")
    assert unseal(KEY, redacted, sealed) == "".join(originals) + redacted
    for key, text, value in (
        (KEY[::-1], redacted, sealed),
        (KEY, redacted + "x", sealed),
        (KEY, redacted, sealed[:-1]),
        (KEY, redacted, bytes([sealed[0] ^ 1]) + sealed[1:]),
    ):
        with pytest.raises(ValueError, match="the key is another one"):
            unseal(key, text, value)


def test_what_is_refused(tmp_path: Path, key_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPANLAKE_REDACTION_KEY", raising=False)
    with pytest.raises(UserError, match="--vault keeps what --redact replaces"):
        options("--vault")
    with pytest.raises(UserError, match="--vault needs a key"):
        options("--vault", "--redact", "label")
    with pytest.raises(UserError, match="use the nested layout"):
        options("--vault", "--redact", "label", "--layout", "mentions", "--drop-text", "--redact-key-file", key_file)


def test_what_restore_refuses(tmp_path: Path, key_file: str, capfd: pytest.CaptureFixture[str]) -> None:
    def refusal(output: str, directory: str, file: str = key_file) -> str:
        assert cli.main(["restore", str(tmp_path / output), str(tmp_path / directory), "--redact-key-file", file]) == 2
        return capfd.readouterr().err

    for name, redaction in (("plain", Redaction("label")), ("sealed", Redaction("label", KEY, vault=True))):
        (tmp_path / name).mkdir()
        extract(make_request(tmp_path / name, Layout(redaction=redaction, drop_text=True)))
    assert "has no vault" in refusal("plain/out", "back")
    (tmp_path / "other").write_bytes(KEY[::-1])
    assert "The key is not the one of" in refusal("sealed/out", "back", str(tmp_path / "other"))
    assert "is not empty" in refusal("sealed/out", "plain")
    assert not (tmp_path / "back").exists()
    [first, *_] = sorted((tmp_path / "sealed" / "out").glob("*.parquet"))
    changed = pq.read_table(first)
    place = changed.column_names.index("redacted_text")
    turned = pa.array(changed.column("redacted_text").to_pylist()[::-1], pa.string())
    pq.write_table(changed.set_column(place, "redacted_text", turned), first)
    message = refusal("sealed/out", "back")
    assert "A row of a.parquet cannot be restored (the key is another one, or" in message
    assert not list((tmp_path / "back").iterdir())
    assert json.loads((tmp_path / "sealed/out/_spanlake/manifest.json").read_text())["layout"]["redaction"]["vault"]
