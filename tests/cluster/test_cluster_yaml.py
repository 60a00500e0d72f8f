"""Ray's cluster launcher accepts cluster.yaml, and the files that it names exist."""

import copy
import re
from typing import Any

import jsonschema
import pytest
import yaml
from commands import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")


def config() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(config()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda given: given.update(max_wrokers=1),
        lambda given: given["available_node_types"]["gpu-worker"].update(resources={"GPU": 0.5}),
        lambda given: given["available_node_types"]["head"].pop("node_config"),
        lambda given: given.update(head_node_type="no-such-type"),
    ],
)
def test_ray_refuses_a_wrong_one(spoil: Any) -> None:
    given = copy.deepcopy(config())
    spoil(given)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(given))


def test_it_has_a_head_and_cpu_and_gpu_workers_that_start_on_demand() -> None:
    types = config()["available_node_types"]
    assert set(types) == {"head", "cpu-worker", "gpu-worker"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(types[name]["min_workers"] == 0 < types[name]["max_workers"] for name in types if name != "head")


def test_the_files_that_its_commands_name_are_there() -> None:
    named = set(re.findall(r"\b(?:jobs|tools)/[\w./-]+|\bconstraints\.txt", TEXT))
    assert named >= {"jobs/train.py", "jobs/extract.py", "tools/install.sh", "constraints.txt"}
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not missing, missing


def test_it_installs_extras_that_the_package_has() -> None:
    [extras] = re.findall(r"tools/install\.sh \S+ (\S+)", TEXT)
    known = re.search(
        r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    assert known is not None
    assert set(extras.split(",")) <= set(re.findall(r"^(\w+) = ", known.group(1), re.MULTILINE))
