"""Tests the settings of an extraction."""

import pytest

from spanlake.calibration import Calibration
from spanlake.errors import UserError
from spanlake.inference.settings import Settings, read_settings

CALIBRATION = Calibration(threshold=0.3, thresholds={"person": 0.6, "place": 0.2})


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ([], (0.6, 0.2, 0.3)),
        (["0.5"], (0.5, 0.5, 0.5)),
        (["place=0.7"], (0.6, 0.7, 0.3)),
        (["0.4", "film=0.9"], (0.4, 0.4, 0.9)),
        (["person=0", "place=1", "film=0.5"], (0, 1, 0.5)),
    ],
)
def test_labels_without_a_threshold_take_that_of_the_model(thresholds: list[str], expected: tuple[float, ...]):
    settings = read_settings("person,place,film", thresholds, nested=False, multi_label=False)
    calibrated = settings.calibrated(CALIBRATION)
    assert calibrated.thresholds == expected and calibrated.calibrated(CALIBRATION) == calibrated
    assert settings.calibrated(None) == settings


def test_a_threshold_of_no_label_is_refused():
    settings = Settings.make(["person", "place"])
    with pytest.raises(UserError, match="threshold for 'film', which is not a label; the labels are person, place"):
        settings.with_thresholds({"film": 0.5})
    with pytest.raises(UserError, match="1.5 is not a number from 0 to 1"):
        settings.with_thresholds({"place": 1.5})


def test_joining_is_part_of_the_settings_and_needs_flat_entities() -> None:
    settings = Settings.make(["person"])
    assert settings.joining(True).join and settings.joining(True).as_json() == {**settings.as_json(), "join": True}
    for overlapping in (Settings.make(["person"], nested=True), Settings.make(["person"], multi_label=True)):
        assert overlapping.joining(False) == overlapping
        with pytest.raises(UserError, match="leave out nested and multi-label"):
            overlapping.joining(True)
