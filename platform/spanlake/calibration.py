"""The calibration of a package: how a logit becomes a probability, and which thresholds the scores must exceed.

The calibrated score is sigmoid(scale * logit + shift). It is the same for all labels, so it changes no choice between
spans. Each label that the calibration has seen has its own threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Calibration:
    scale: float = 1.0
    shift: float = 0.0
    threshold: float = DEFAULT_THRESHOLD  # for labels that are not in `thresholds`
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by label, in lower case

    @classmethod
    def from_dict(cls, value: Any) -> Calibration:
        """Reads the values of `to_dict`, and ignores other keys. Raises ValueError for values that are not valid."""
        try:
            thresholds = {str(label): float(number) for label, number in value["thresholds"].items()}
            found = cls(float(value["scale"]), float(value["shift"]), float(value["threshold"]), thresholds)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the calibration lacks or misstates {error}") from error
        if not (0 < found.scale < math.inf and math.isfinite(found.shift)):
            raise ValueError(f"the calibration has the scale {found.scale} and the shift {found.shift}")
        if not all(0 <= number <= 1 for number in (found.threshold, *thresholds.values())):
            raise ValueError("the calibration has a threshold outside 0 to 1")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the values that change a model's answers."""
        return {
            "scale": self.scale,
            "shift": self.shift,
            "threshold": self.threshold,
            "thresholds": dict(sorted(self.thresholds.items())),
        }

    def threshold_of(self, label: str) -> float:
        """Returns the threshold of a label, written as the model reads it."""
        return self.thresholds.get(label.lower(), self.threshold)
