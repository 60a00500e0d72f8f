"""Metrics of an extraction: what is counted, and that its dashboard shows each of them."""

import re
from collections import Counter

from commands import ROOT
from metric_kinds import Kinds, shown_metrics

from spanlake.extraction.run.board import State
from spanlake.extraction.run.metrics import RunMetrics
from spanlake.extraction.run.unit import UnitCounts


def test_units_are_counted_and_what_is_in_work_is_told() -> None:
    kinds = Kinds()
    metrics = RunMetrics(kinds, "s3://bucket/found", 30)
    state = State(2, {"reading": 1, "scoring": 2, "writing": 0})
    metrics.add(UnitCounts(rows=10, failed_rows=1, tokens=70, by_label=Counter(person=3, place=0)), state)
    metrics.add(UnitCounts(rows=20), State(1, {"reading": 0, "scoring": 0, "writing": 1}))
    found = {
        (name.removeprefix("spanlake_extraction_"), *tags[1:]): values for (name, *tags), values in kinds.values.items()
    }
    assert found == {
        ("units_total",): [1, 1],
        ("rows_total",): [10, 20],
        ("failed_rows_total",): [1],  # Ray refuses to count 0
        ("tokens_total",): [70],
        ("entities_total",): [3],
        ("pending_rows",): [20, 0],
        ("workers",): [2, 1],
        ("units_in_work", "reading"): [1, 0],
        ("units_in_work", "scoring"): [2, 0],
        ("units_in_work", "writing"): [0, 1],
    }
    assert {name[1] for name in kinds.values} == {"s3://bucket/found"}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    kinds = Kinds()
    RunMetrics(kinds, "found", 1)
    queries, names = shown_metrics(ROOT / "deploy" / "grafana" / "extraction.json")
    assert names == set(kinds.tags)
    for query in queries:
        assert set(re.findall(r"by \((\w+)\)", query)) <= {"output", "stage"}
        assert query.count("(") == query.count(")")
