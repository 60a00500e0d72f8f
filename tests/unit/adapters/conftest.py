"""The model, the texts and the entities that the tests of all adapters share."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commands import ROOT

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
def spark(library: Callable[[str, str], ModuleType]) -> Iterator[Any]:
    """Returns a Spark session of one thread."""
    sql = library("pyspark.sql", "spark")
    library("pandas", "spark")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    paths = os.pathsep.join([str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])])
    builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.executorEnv.PYTHONPATH", paths).config("spark.driver.bindAddress", "127.0.0.1")
    try:
        session = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
    except Exception as error:  # pyspark raises several kinds
        pytest.skip(f"Spark does not start here; it needs Java: {error}")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def extractor(tiny_model_dir: Path) -> Extractor:
    return Extractor.load(str(tiny_model_dir), device="cpu", precision="float32", threads=1)


@pytest.fixture(scope="session")
def expected(extractor: Extractor) -> list[list[Entity]]:
    found = extractor.extract(TEXTS, LABELS, 0.3)
    assert found[0] and found[2] and found[3]
    return found
