"""What Prometheus is told about a run: rows, entities and errors so far, and what is in work."""

from typing import Any

from spanlake.extraction.run.board import State
from spanlake.extraction.run.unit import UnitCounts


class RunMetrics:
    """The metrics of one run. Ray's agents export them with names that begin with `ray_`."""

    def __init__(self, kinds: Any, output: str, pending_rows: int) -> None:
        """`kinds` is a module with the classes Counter and Gauge, such as `ray.util.metrics`. `output` is a URI."""
        tags = ("output",)
        self._output = {"output": output}
        self._pending_rows = pending_rows
        self._units = kinds.Counter("spanlake_extraction_units_total", "Units committed.", tags)
        self._rows = kinds.Counter("spanlake_extraction_rows_total", "Rows of these units.", tags)
        self._failed = kinds.Counter("spanlake_extraction_failed_rows_total", "Rows that could not be read.", tags)
        self._tokens = kinds.Counter("spanlake_extraction_tokens_total", "Sub-words read, those of labels too.", tags)
        self._entities = kinds.Counter("spanlake_extraction_entities_total", "Entities found.", tags)
        self._pending = kinds.Gauge("spanlake_extraction_pending_rows", "Rows that are not yet committed.", tags)
        self._workers = kinds.Gauge("spanlake_extraction_workers", "Workers that have begun.", tags)
        self._stages = kinds.Gauge("spanlake_extraction_units_in_work", "Units by stage.", (*tags, "stage"))

    def add(self, unit: UnitCounts, state: State) -> None:
        self._pending_rows -= unit.rows
        self._units.inc(1, tags=self._output)
        for counter, count in (
            (self._rows, unit.rows),
            (self._failed, unit.failed_rows),
            (self._tokens, unit.tokens),
            (self._entities, unit.entities),
        ):
            if count:  # Ray refuses 0
                counter.inc(count, tags=self._output)
        self._pending.set(self._pending_rows, tags=self._output)
        self._workers.set(state.workers, tags=self._output)
        for stage, units in state.stages.items():
            self._stages.set(units, tags={**self._output, "stage": stage})
