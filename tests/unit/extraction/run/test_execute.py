"""The summary of a run."""

from typing import Any

from spanlake.extraction.run.execute import Summary, not_read


def summary(**given: Any) -> Summary:
    return Summary(output="out", model={"name": "m"}, source_rows=10, units=2, **given)


def test_a_summary_counts_and_names_the_files_that_are_not_read() -> None:
    names = ("_SUCCESS", "a.lock", "b.lock", "c.lock")
    found = summary(files_not_read=names, rows=10, seconds=1.0)
    assert found.as_json()["files_not_read"] == {"count": 4, "names": names}
    assert found.as_line().endswith("in out; 4 files are not read, by name or content (_SUCCESS, a.lock, b.lock, ...)")
    again = summary(files_not_read=names[:1], resumed_rows=10)
    assert again.as_line().endswith("rows; 1 file is not read, by name or content (_SUCCESS)")
    many = summary(files_not_read=tuple(f"{number}.crc" for number in range(1000))).as_json()["files_not_read"]
    assert many["count"] == 1000 and len(many["names"]) == 100


def test_a_summary_mentions_files_that_are_not_read_only_if_there_are_any() -> None:
    assert "not read" not in summary(rows=10, seconds=1.0).as_line()
    assert summary().as_json()["files_not_read"] == {"count": 0, "names": ()}
    assert not_read(["a"]) == "1 file is not read, by name or content (a)"
