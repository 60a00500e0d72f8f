"""The model, the texts and the entities that the tests of all adapters share."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from spanlake import Entity, Extractor

LABELS = ["person", "city"]
TEXTS = [
    "Ada met Charles Babbage in London",
    "",
    "\U0001f30a Marie Curie, found radium\u2028in Warsaw-\U0001f680London e\u0301",
    "Ada's " * 30,
]


@pytest.fixture(scope="session")
def library() -> Callable[[str, str], ModuleType]:
    """Returns a function that imports a library, or skips the test and says what to install."""

    def find(name: str, extra: str) -> ModuleType:
        return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'spanlake[{extra}]'")

    return find


@pytest.fixture(scope="session")
def extractor(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32", threads=1)


@pytest.fixture(scope="session")
def expected(extractor: Extractor) -> list[list[Entity]]:
    found = extractor.extract(TEXTS, LABELS, 0.3)
    assert found[0] and found[2] and found[3]
    return found
