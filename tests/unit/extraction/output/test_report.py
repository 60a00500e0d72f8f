"""`spanlake report`: its counts and its page."""

import random
import re
from collections import Counter
from html import unescape
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from spanlake.extraction.output.layout import ENTITY
from spanlake.extraction.output.passages import Passage
from spanlake.extraction.output.report import mark, render
from spanlake.extraction.output.statistics import FrequentForms, Sample, Statistics, pairs

LABELS = ["person", "place", "<b>odd & label</b>"]
HUES = {label: index for index, label in enumerate(LABELS)}


def entity(text: str, start: int, end: int, label: str, score: float) -> dict[str, Any]:
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": score}


def collected(rows: list[tuple[str | None, list[dict[str, Any]] | None, str | None]]) -> Statistics:
    found = Statistics(LABELS)
    texts, entities, errors = zip(*rows, strict=True)
    found.add_rows(
        "a.parquet", {"text": pa.array(texts)}, pa.array(entities, pa.list_(ENTITY)), pa.array(errors, pa.string())
    )
    return found


def page(found: Statistics, rows: int | None = None) -> str:
    manifest = {
        "model": {"name": "tiny", "fingerprint": "f" * 64},
        "settings": {"labels": dict.fromkeys(LABELS), "nested": True, "multi_label": False},
        "source": {"uri": "lake", "rows": found.rows if rows is None else rows},
    }
    return render(SimpleNamespace(manifest=manifest, output=SimpleNamespace(uri="found")), found)


TEXT = "Ada of Paris met <script>alert('Ada')</script> in Paris."
ROWS = [
    (TEXT, [entity(TEXT, 0, 12, "person", 0.9), entity(TEXT, 7, 12, "place", 0.55)], None),
    (TEXT, [entity(TEXT, 50, 55, "place", 1.0), entity(TEXT, 17, 46, "person", 0.5)], None),
    ("nothing", [], None),
    (None, None, "text is null"),
]


def test_the_counts() -> None:
    found = collected(ROWS)
    assert (found.rows, found.rows_with_entities, found.failed_rows) == (4, 2, 1)
    assert found.mentions_L.tolist() == [2, 2, 0]
    assert found.histogram_LB[0].nonzero()[0].tolist() == [10, 18]
    assert found.histogram_LB[1].nonzero()[0].tolist() == [11, 19]  # a score of 1 is in the last bin
    assert found.together_LL.tolist() == [[2, 2, 0], [2, 2, 0], [0, 0, 0]]
    assert pairs(found, 5) == [("person", "place", 2)]
    assert found.forms["place"].counts == {"Paris": 2}
    assert [(failure.source, failure.error) for failure in found.failures] == [("a.parquet", "text is null")]


def test_counts_do_not_depend_on_how_rows_come_in_batches() -> None:
    whole, parts = collected(ROWS), Statistics(LABELS)
    for text, entities, error in ROWS:
        parts.add_rows(
            "a.parquet",
            {"text": pa.array([text], pa.string())},
            pa.array([entities], pa.list_(ENTITY)),
            pa.array([error], pa.string()),
        )
    assert np.array_equal(whole.histogram_LB, parts.histogram_LB)
    assert np.array_equal(whole.together_LL, parts.together_LL)
    assert page(whole) == page(parts)


def test_an_output_of_mentions_gives_the_same_counts() -> None:
    columns: dict[str, list[Any]] = {name: [] for name in ("source_row", "label", "text", "score", "error")}
    for row, (_, entities, error) in enumerate(ROWS):
        for found in entities if entities is not None else [{}]:
            values = {**found, "source_row": row, "error": error}
            for name, column in columns.items():
                column.append(values.get(name))
    mentions, rows = Statistics(LABELS), collected(ROWS)
    mentions.add_mentions("a.parquet", len(ROWS), pa.table(columns))
    assert np.array_equal(mentions.histogram_LB, rows.histogram_LB)
    assert np.array_equal(mentions.together_LL, rows.together_LL)
    assert (mentions.rows, mentions.rows_with_entities, mentions.failed_rows) == (4, 2, 1)
    assert mentions.forms["place"].counts == rows.forms["place"].counts


def test_data_cannot_act_on_the_page() -> None:
    shown = page(collected(ROWS))
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert "<b>odd" not in shown and "&lt;b&gt;odd &amp; label" in shown


def test_nothing_is_fetched_by_the_page() -> None:
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page(collected(ROWS)))


def test_an_unfinished_output_is_called_so() -> None:
    assert "Not complete" in page(collected(ROWS), rows=5)
    assert "Not complete" not in page(collected(ROWS))


def test_marks_lie_within_each_other_and_keep_the_text() -> None:
    html = str(mark(Passage(TEXT, ROWS[0][1]), HUES))
    assert html.startswith('<mark class="h0">Ada of <mark class="h1">Paris<span class="tag">place 0.55</span></mark>')
    plain = re.sub(r"<[^>]*>", "", re.sub(r'<span class="tag">[^<]*</span>', "", html))
    assert unescape(plain) == TEXT


@pytest.mark.parametrize("capacity", [5, 50])
def test_frequent_forms_are_right_within_the_error_they_state(capacity: int) -> None:
    rng = random.Random(capacity)
    forms = [f"form {int(rng.paretovariate(0.7))}" for _ in range(5000)]
    kept, truth = FrequentForms(capacity), Counter(forms)
    for form in forms:
        kept.add(form, 1)
    assert len(kept.counts) <= 2 * capacity and kept.error > 0
    for form, count in truth.items():
        assert count - kept.error <= kept.counts[form] <= count


def test_a_sample_is_fair() -> None:
    chosen = Counter()
    for seed in range(2000):
        sample = Sample(2, str(seed))
        for item in range(10):
            if (place := sample.place()) is not None:
                sample.put(place, item)  # type: ignore[arg-type]
        chosen.update(sample.chosen)
    assert all(320 < chosen[item] < 480 for item in range(10)), chosen  # of 2000, 400 expected
