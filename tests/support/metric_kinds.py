"""What tests of metrics and their dashboards share."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Kinds:
    """In place of ray.util.metrics: keeps what is recorded, and refuses tags that were not announced, as Ray does."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], list[float]] = {}
        self.tags: dict[str, tuple[str, ...]] = {}

    def _kind(self, name: str, description: str, *rest: Any) -> Any:
        tag_keys = next((each for each in rest if isinstance(each, tuple)), ())
        assert description.endswith(".")
        self.tags[name] = tag_keys

        def record(value: float = 1, tags: dict[str, str] | None = None) -> None:
            assert set(tags or {}) == set(tag_keys)
            self.values.setdefault((name, *(tags or {}).values()), []).append(value)

        return SimpleNamespace(inc=record, set=record, observe=record)

    Counter = Gauge = Histogram = _kind


def shown_metrics(dashboard: Path) -> tuple[list[str], set[str]]:
    """Returns the queries of a dashboard, and the names of the metrics in them without Ray's prefix."""
    panels = json.loads(dashboard.read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"\bray_\w+|\bspanlake_\w+", query)}
    assert all(name.startswith("ray_spanlake_") for name in shown)
    return queries, {re.sub("_(bucket|sum|count)$", "", name).removeprefix("ray_") for name in shown}
