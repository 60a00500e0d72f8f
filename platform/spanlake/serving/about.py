"""Says what a model is good at, from the metadata of its package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spanlake.serving.schema import ModelAbout


def trained_labels(metadata: Mapping[str, Any]) -> list[str]:
    labels = metadata.get("labels")
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def about(name: str, metadata: Mapping[str, Any], description: str | None, is_loaded: bool) -> ModelAbout:
    """`metadata` may come from other programs; what does not have the expected form is left out."""
    metrics = metadata.get("metrics")
    sets = metrics.get("sets") if isinstance(metrics, dict) else None
    scores = {
        row["name"]: float(row["f1"])
        for row in (sets if isinstance(sets, list) else ())
        if isinstance(row, dict) and isinstance(row.get("name"), str) and isinstance(row.get("f1"), (int, float))
    }
    given = metadata.get("license")
    return ModelAbout(
        name=name,
        description=description,
        labels=trained_labels(metadata),
        scores=scores,
        license=given if isinstance(given, str) else None,
        is_loaded=is_loaded,
    )
