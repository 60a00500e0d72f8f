"""Ray's cluster launcher accepts cluster.yaml and its variants, and the files that they name exist."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from commands import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

CLOUDS = [ROOT / "cluster.yaml", *(ROOT / "deploy/clusters" / name for name in ("gcp.yaml", "azure.yaml"))]
FILES = [*CLOUDS, ROOT / "deploy/clusters/on-premise.yaml"]
of_clouds = pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
of_all = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def config(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_every_variant_is_tested() -> None:
    assert {*FILES[1:]} == {*(ROOT / "deploy/clusters").iterdir()}


@of_all
def test_ray_accepts_it(file: Path) -> None:
    validate_config(prepare_config(config(file)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda given: given.update(max_wrokers=1),
        lambda given: given["available_node_types"]["gpu-worker"].update(resources={"GPU": 0.5}),
        lambda given: given["available_node_types"]["head"].pop("node_config"),
        lambda given: given.update(head_node_type="no-such-type"),
    ],
)
@of_clouds
def test_ray_refuses_a_wrong_one(file: Path, spoil: Any) -> None:
    given = config(file)
    spoil(given)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(given))


@of_clouds
def test_it_has_a_head_and_cpu_and_gpu_workers_that_start_on_demand(file: Path) -> None:
    types = config(file)["available_node_types"]
    assert set(types) == {"head", "cpu-worker", "gpu-worker"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(types[name]["min_workers"] == 0 < types[name]["max_workers"] for name in types if name != "head")


@of_all
def test_the_files_that_its_commands_name_are_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:jobs|tools|deploy)/[\w./-]+|\bconstraints\.txt|\bcluster\.yaml", text))
    assert named >= {"tools/install.sh", "cluster.yaml"}
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not missing, missing


@of_all
def test_it_installs_extras_that_the_package_has(file: Path) -> None:
    [extras] = re.findall(r"tools/install\.sh \S+ (\S+)", file.read_text(encoding="utf-8"))
    known = re.search(
        r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    assert known is not None
    assert set(extras.split(",")) <= set(re.findall(r"^(\w+) = ", known.group(1), re.MULTILINE))
