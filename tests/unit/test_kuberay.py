"""The manifests for Kubernetes: KubeRay's schemas accept them, and their parts fit each other and the repository."""

import gzip
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from commands import ROOT

from spanlake.serving.config import read_config
from spanlake.training.recipe import read_recipe

KUBERAY = ROOT / "deploy" / "kuberay"
MANIFESTS = sorted(KUBERAY.glob("*/*.yaml"))
APPLIED = ("cluster", "extract", "serve", "serve-gpu", "train")  # directories for `kubectl apply -k`
Document = dict[str, Any]


@cache
def schema(kind: str) -> jsonschema.Draft7Validator:
    """Returns a check by KubeRay's schema of version v1, in which a field that it does not name is an error."""
    path = ROOT / "tests" / "support" / "kuberay" / f"ray.io_{kind.lower()}s.yaml.gz"
    definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)
    [version] = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    closed = version["schema"]["openAPIV3Schema"]
    closed["properties"]["metadata"] = {
        "type": "object",
        "properties": {name: {} for name in ("name", "labels", "annotations", "namespace")},
    }
    close(closed)
    return jsonschema.Draft7Validator(closed)


def close(part: Any) -> None:
    if isinstance(part, dict):
        if isinstance(part.get("properties"), dict) and not part.get("x-kubernetes-preserve-unknown-fields"):
            part.setdefault("additionalProperties", False)
        for value in part.values():
            close(value)
    elif isinstance(part, list):
        for value in part:
            close(value)


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def of_ray() -> dict[str, Document]:
    """Returns the resources that KubeRay reads, by directory."""
    found = {
        path.parent.name: document
        for path in MANIFESTS
        for document in documents(path)
        if document.get("apiVersion") == "ray.io/v1" and path.name != "service.yaml"  # a part that is merged
    }
    assert {*found} == {"cluster", "extract", "serve", "train"}
    return found


def ray_cluster(resource: Document) -> Document:
    spec = resource["spec"]
    return spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec


def pod_templates(resource: Document) -> Iterator[Document]:
    cluster = ray_cluster(resource)
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]
    if "submitterPodTemplate" in resource["spec"]:
        yield resource["spec"]["submitterPodTemplate"]


@pytest.mark.parametrize("name", ["cluster", "extract", "serve", "train"])
def test_kuberay_accepts_each_resource(name: str) -> None:
    resource = of_ray()[name]
    schema(resource["kind"]).validate(resource)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("authOptions", "mode"), "tokens"),
        (("autoscalerOptions", "version"), "v3"),
        (("enableInTreeAutoscaling",), "yes"),
        (("headGroupSpec", "templat"), {}),
        (("gcsFaultToleranceOptions", "redisPassword"), "secret"),
    ],
)
def test_a_wrong_resource_would_be_refused(path: tuple[str, ...], value: object) -> None:
    resource = of_ray()["serve"]
    part = ray_cluster(resource)
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        schema("RayService").validate(resource)


@pytest.mark.parametrize("name", APPLIED)
def test_kustomize_builds_what_kuberay_accepts(name: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run([kubectl, "kustomize", str(KUBERAY / name)], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    resources = list(yaml.safe_load_all(built.stdout))
    assert {"NetworkPolicy", "ServiceAccount"} < {resource["kind"] for resource in resources}
    for resource in resources:
        if resource["apiVersion"] == "ray.io/v1":
            schema(resource["kind"]).validate(resource)


def test_the_overlay_of_the_docs_names_the_images_of_every_pod(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    [overlay] = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shutil.copytree(KUBERAY, tmp_path / "spanlake" / "deploy" / "kuberay")
    (tmp_path / "kustomization.yaml").write_text(overlay)
    built = subprocess.run([kubectl, "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    [service] = [part for part in yaml.safe_load_all(built.stdout) if part["kind"] == "RayService"]
    images = {each["spec"]["containers"][0]["image"] for each in pod_templates(service)}
    assert images == {"registry.example/spanlake:cpu", "registry.example/spanlake:cuda"}
    secrets = re.findall(r"^kubectl .* (create secret generic .*)$", text, re.MULTILINE)
    (tmp_path / "keys.yaml").write_text("{}\n")
    made = [
        subprocess.run(
            f"{kubectl} {secret} --dry-run=client --output yaml",
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        for secret in secrets
    ]
    named = {
        yaml.safe_load(secret.stdout)["metadata"]["name"]: yaml.safe_load(secret.stdout)["data"] for secret in made
    }
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["secret"]["secretName"] in named
    password = ray_cluster(service)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert password["key"] in named[password["name"]] and "keys.yaml" in named["spanlake-keys"]


def test_a_kustomization_names_every_file_beside_it() -> None:
    for path in KUBERAY.glob("*/kustomization.yaml"):
        [said] = documents(path)
        named = {*said["resources"], *(patch["path"] for patch in said.get("patches", ()) if "path" in patch)}
        beside = {other.name for other in path.parent.glob("*.yaml")} - {path.name}
        assert beside == {name for name in named if not name.startswith("..")}
        assert all((path.parent / name).exists() for name in named)


@pytest.mark.parametrize("name", ["cluster", "extract", "serve", "train"])
def test_every_cluster_is_closed_and_starts_with_cpus_alone(name: str) -> None:
    resource = of_ray()[name]
    cluster = ray_cluster(resource)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert {*groups} == {"cpu", "gpu"}
    assert groups["gpu"]["replicas"] == groups["gpu"]["minReplicas"] == 0 < groups["gpu"]["maxReplicas"]
    for group in groups.values():
        [container] = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"]["cpu"] == group["rayStartParams"]["num-cpus"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group["groupName"] == "gpu")
        assert container["image"] == f"spanlake-{'cuda' if group['groupName'] == 'gpu' else 'cpu'}"
    for template in pod_templates(resource):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["runAsUser"] == 1000  # the user of deploy/Dockerfile
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "memory" in container["resources"]["limits"]


def test_the_manifests_name_the_ray_that_the_image_has() -> None:
    [version] = re.findall(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {ray_cluster(resource)["rayVersion"] for resource in of_ray().values()} == {version}


def test_the_network_policy_covers_every_pod() -> None:
    [policy] = documents(KUBERAY / "common" / "network.yaml")
    label = policy["spec"]["podSelector"]["matchLabels"].items()
    [redis] = [part for part in documents(KUBERAY / "serve" / "redis.yaml") if part["kind"] == "StatefulSet"]
    templates = [redis["spec"]["template"]]
    for resource in of_ray().values():
        templates += pod_templates(resource)
    assert all(label <= template["metadata"]["labels"].items() for template in templates)
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for rule in policy["spec"]["ingress"]:  # only the cluster and the operator reach the ports that run code
        assert "ports" in rule or all("podSelector" in source for source in rule["from"])


def test_the_service_is_that_of_the_repository_with_keys_and_two_replicas() -> None:
    service = of_ray()["serve"]["spec"]
    settings = yaml.safe_load(service["serveConfigV2"])
    shipped = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    [application] = settings["applications"]
    [mounted] = {mount["mountPath"] for each in pod_templates(of_ray()["serve"]) for mount in mounts(each)}
    keys = application["args"].pop("keys")
    assert Path(keys).parent == Path(mounted)
    read_config(application["args"])
    scaling = application["deployments"][0]["autoscaling_config"]
    least = {group["groupName"]: group["minReplicas"] for group in service["rayClusterConfig"]["workerGroupSpecs"]}
    assert scaling["min_replicas"] == least["cpu"] == 2
    [own] = shipped["applications"]
    own["deployments"][0]["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": scaling["max_replicas"]}
    assert settings == shipped
    [merged] = documents(KUBERAY / "serve-gpu" / "service.yaml")
    on_gpus = yaml.safe_load(merged["spec"]["serveConfigV2"])
    assert on_gpus["applications"][0]["deployments"][0]["ray_actor_options"].pop("num_gpus") == 0.5
    application["args"]["keys"] = keys
    application["deployments"][0]["ray_actor_options"].pop("num_gpus")
    assert on_gpus == settings


def mounts(template: Document) -> list[Document]:
    return [mount for container in template["spec"]["containers"] for mount in container["volumeMounts"]]


def test_an_update_loses_no_request() -> None:
    service = of_ray()["serve"]["spec"]
    [application] = yaml.safe_load(service["serveConfigV2"])["applications"]
    drain = application["deployments"][0]["graceful_shutdown_timeout_s"]
    assert application["args"]["limits"]["request_seconds"] < drain < service["rayClusterDeletionDelaySeconds"]
    assert service["upgradeStrategy"] == {"type": "NewCluster"}
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain
    [budget] = documents(KUBERAY / "serve" / "disruptions.yaml")
    wanted = budget["spec"]["selector"]["matchLabels"].items()
    assert isinstance(budget["spec"]["minAvailable"], int)
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        labels = {**group["template"]["metadata"]["labels"], "ray.io/node-type": "worker"}  # which KubeRay adds
        assert wanted <= labels.items()


def test_the_heads_state_is_kept_in_redis() -> None:
    options = ray_cluster(of_ray()["serve"])["gcsFaultToleranceOptions"]
    parts = {part["kind"]: part for part in documents(KUBERAY / "serve" / "redis.yaml")}
    name, port = options["redisAddress"].split(":")
    assert parts["Service"]["metadata"]["name"] == name
    assert [int(port)] == [each["port"] for each in parts["Service"]["spec"]["ports"]]
    [container] = parts["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert parts["Service"]["spec"]["selector"].items() <= (
        parts["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_commands_of_the_jobs_are_right_and_their_recipe_is_in_the_image() -> None:
    train = shlex.split(of_ray()["train"]["spec"]["entrypoint"])
    recipe, workers, gpus = train[2:5]
    in_image = Path(recipe).relative_to("/opt/spanlake")
    assert "COPY jobs /opt/spanlake/jobs" in (ROOT / "deploy" / "Dockerfile").read_text()
    read = read_recipe(ROOT / in_image, [workers, gpus])
    assert read.parallel.gpus_per_worker == 1
    group = ray_cluster(of_ray()["train"])["workerGroupSpecs"][1]
    assert int(workers.partition("=")[2]) <= group["maxReplicas"]
