"""The nightly command of the documentation keeps one table up to date with another."""

import re
from pathlib import Path

import pyarrow as pa
from commands import ROOT, run
from deltalake import DeltaTable, write_deltalake

DOCS = (ROOT / "docs" / "extraction.md").read_text(encoding="utf-8")


def rows(*ids: int) -> pa.Table:
    texts = [f"Ada Lovelace met Charles Babbage, {i} times" for i in ids]
    return pa.table({"id": pa.array(ids, pa.int64()), "text": texts})


def test_the_nightly_command(tmp_path: Path) -> None:
    """The second night extracts what has changed, and the command of a night that is complete changes nothing."""
    section = DOCS.split("## Every night\n")[1]
    (command,) = re.findall(r"^```sh\n(.*?)^```", section.split("\n## ")[0], re.DOTALL | re.MULTILINE)
    (tmp_path / "nightly.sh").write_text(command)
    pages, found = tmp_path / "lake" / "pages", tmp_path / "lake" / "found"

    def night(name: str) -> str:
        done = run(f"NIGHT={name} sh nightly.sh", tmp_path)
        assert done.returncode == 0, done.stderr
        texts = {row["id"]: row["text"] for row in DeltaTable(pages).to_pyarrow_table().to_pylist()}
        held = DeltaTable(found).to_pyarrow_table().to_pylist()
        assert {row["id"]: row["text"] for row in held} == texts and len(held) == len(texts)
        assert all(row["entities"] for row in held)
        return done.stdout

    write_deltalake(pages, rows(*range(20)))
    assert night("1").startswith("20 rows in ")
    DeltaTable(pages).update(updates={"text": "'Grace Hopper'"}, predicate="id = 3")
    DeltaTable(pages).delete("id = 7")
    write_deltalake(pages, rows(20), mode="append")
    assert night("2").startswith("4 rows in ")  # 3 before and after, 7, and 20
    version = DeltaTable(found).version()
    assert "already complete" in night("2") and DeltaTable(found).version() == version
