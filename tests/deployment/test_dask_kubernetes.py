"""A Dask cluster on Kubernetes: schemas, references between objects, the chart's keys, and commands that really start."""

import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import httpx
import kubernetes_validate
import pytest
import yaml
from commands import cli
from dask.utils import parse_bytes
from distributed import Client
from test_image import HADOLINT, free_port

from mlcycle.core.versions import find_distribution
from mlcycle.deployment.dask_kubernetes import KubernetesCluster, cluster_objects, helm_values, write_cluster_manifests
from mlcycle.errors import ParameterError

VERSION = "1.37"  # Of the schemas
IMAGE = "registry.example.com/mlcycle-dask:1"
CHART_KEYS = {  # Of `values.yaml` of the chart `dask`: 2024.1.1, and its repository at Dask 2025.11.0
    "fullnameOverride": {},
    "jupyter": {"enabled", "rbac"},
    "scheduler": {"image", "resources", "securityContext", "livenessProbe", "readinessProbe"},
    "worker": {"image", "resources", "securityContext", "livenessProbe", "readinessProbe", "replicas",
               "threads_per_worker", "portDashboard", "extraArgs", "mounts"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The folder that the command writes."
    out = tmp_path_factory.mktemp("dask")
    done = cli("cluster", "manifests", "--out", out, "--image", IMAGE, "--workers", "3", "--memory", "6Gi", cwd=out)
    assert done.returncode == 0, done.stderr
    assert str(out / "mlcycle-dask" / "README.md") in done.stdout
    return out / "mlcycle-dask"


def read(folder: Path) -> dict[str, dict]:
    "The YAML files of a folder by path."
    return {path.relative_to(folder).as_posix(): yaml.safe_load(path.read_text()) for path in folder.rglob("*.yaml")}


def pod_of(each: dict) -> dict:
    "The pod of a Deployment or Job."
    return each["spec"]["template"]["spec"]


def test_objects_have_the_form_that_kubernetes_expects(folder):
    own = {name: each for name, each in read(folder).items() if name not in ("kustomization.yaml", "helm/values.yaml")}
    assert {each["kind"] for each in own.values()} == {
        "Namespace", "PersistentVolumeClaim", "Deployment", "Service", "NetworkPolicy", "Job"}  # fmt: skip
    for each in own.values():
        kubernetes_validate.validate(each, VERSION, strict=True)
    own["workers.yaml"]["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(own["workers.yaml"], VERSION, strict=True)


def test_pods_are_restricted_and_bounded(folder):
    found = read(folder)
    assert found["namespace.yaml"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name in ("scheduler.yaml", "workers.yaml", "run/job.yaml"):
        (container,) = pod_of(found[name])["containers"]
        security = container["securityContext"]
        assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]} and container["image"] == IMAGE
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert not pod_of(found[name])["automountServiceAccountToken"]
        assert name == "run/job.yaml" or {"startupProbe", "readinessProbe", "livenessProbe"} <= {*container}
    assert found["workers.yaml"]["spec"]["replicas"] == 3


def test_objects_name_what_exists(folder):
    found = read(folder)
    applied = {name for name in found if "/" not in name} - {"kustomization.yaml"}
    assert {*found["kustomization.yaml"]["resources"]} == applied
    labels = {name: found[name]["spec"]["template"]["metadata"]["labels"] for name in ("scheduler.yaml", "workers.yaml")}
    policies = {name: found[f"{name}-network-policy.yaml"]["spec"]["podSelector"] for name in ("scheduler", "worker")}
    assert policies["scheduler"]["matchLabels"].items() <= labels["scheduler.yaml"].items()
    assert policies["worker"]["matchLabels"].items() <= labels["workers.yaml"].items()
    service = found["scheduler-service.yaml"]
    assert service["spec"]["selector"].items() <= labels["scheduler.yaml"].items()
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert address in pod_of(found["workers.yaml"])["containers"][0]["command"]
    job = pod_of(found["run/job.yaml"])
    assert {"name": "MLCYCLE_SCHEDULER", "value": address} in job["containers"][0]["env"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in job["volumes"] if "persistentVolumeClaim" in volume}
    assert claims == {found["project-claim.yaml"]["metadata"]["name"]}
    namespace = found.pop("namespace.yaml")["metadata"]["name"]
    assert {each["metadata"]["namespace"] for each in found.values() if "metadata" in each} == {namespace} == {"mlcycle"}


def test_only_the_namespace_reaches_the_scheduler_and_only_dask_the_workers(folder):
    found = read(folder)
    (scheduler,) = found["scheduler-network-policy.yaml"]["spec"]["ingress"]
    assert scheduler["from"] == [{"podSelector": {}}]  # Without a namespaceSelector: those of this namespace
    ports = {port["port"] for port in found["scheduler-service.yaml"]["spec"]["ports"]}
    assert {port["port"] for port in scheduler["ports"]} == ports
    (worker,) = found["worker-network-policy.yaml"]["spec"]["ingress"]
    names = [each["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for each in worker["from"]]
    assert names == ["dask-scheduler", "dask-worker"]
    assert found["helm/network-policy.yaml"]["spec"]["ingress"] == [{"from": [{"podSelector": {}}]}]


def test_helm_values_have_keys_of_the_chart_and_describe_the_same_pods(folder):
    found = read(folder)
    values = found["helm/values.yaml"]
    assert {name: {*each} if isinstance(each, dict) else {} for name, each in values.items()} == CHART_KEYS
    for part, file in (("scheduler", "scheduler.yaml"), ("worker", "workers.yaml")):
        container = pod_of(found[file])["containers"][0]
        assert values[part]["resources"] == container["resources"]
        assert f"{values[part]['image']['repository']}:{values[part]['image']['tag']}" == IMAGE
    arguments = values["worker"]["extraArgs"]
    limit, memory = arguments[arguments.index("--memory-limit") + 1], values["worker"]["resources"]["limits"]["memory"]
    assert 0.8 * parse_bytes(memory) < parse_bytes(limit) < 0.9 * parse_bytes(memory)
    assert values["worker"]["livenessProbe"]["httpGet"]["port"] == values["worker"]["portDashboard"]
    digest = f"registry.example.com/dask@sha256:{'0' * 64}"
    image = helm_values(KubernetesCluster(digest))["worker"]["image"]
    assert f"{image['repository']}:{image['tag']}" == digest


def test_the_image_has_this_mlcycle_and_the_packages_of_this_environment(folder):
    context = folder / "image"
    done = subprocess.run([HADOLINT, context / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    (wheel,) = context.glob("mlcycle*.whl")
    text = (context / "Dockerfile").read_text()
    assert f"COPY {wheel.name} constraints.txt" in text and text.rstrip().endswith('CMD ["mlcycle", "--help"]')
    pins = dict(line.split("==") for line in (context / "constraints.txt").read_text().splitlines())
    import dask
    import sklearn

    assert (pins["dask"], pins["scikit-learn"]) == (dask.__version__, sklearn.__version__)
    assert not any(name.startswith("mlcycle") for name in pins)
    extras = text.split("mlcycle-notebooks[")[1].split("]")[0].split(",")
    assert "dask" in extras and not {"docs", "lab", "test"} & {*extras}
    assert ("postgres" in extras) == bool(find_distribution("psycopg")) and ("onnx" in extras) == bool(
        find_distribution("skl2onnx")
    )


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"memory": "4 GB"}, {"namespace": "A_b"}, {"image": "no name"}])
def test_what_kubernetes_refuses_is_an_error_and_writes_nothing(wrong, tmp_path):
    with pytest.raises(ParameterError, match=str(next(iter(wrong.values())))):
        write_cluster_manifests(tmp_path, **{"image": IMAGE} | wrong)
    assert not [*tmp_path.iterdir()]


def test_the_commands_start_and_the_probes_respond(tmp_path):
    "The commands of both containers are executed with other ports; every probe gets its response."
    objects = cluster_objects(KubernetesCluster(IMAGE, 1, "1Gi"))
    ports = {port: str(free_port()) for port in ("8786", "8787", "8790")}
    with ExitStack() as stack:
        for name in ("scheduler.yaml", "workers.yaml"):
            command = [_moved(word, ports, tmp_path) for word in pod_of(objects[name])["containers"][0]["command"]]
            started = subprocess.Popen([sys.executable, *command[1:]], cwd=tmp_path, stderr=subprocess.DEVNULL)
            stack.callback(started.wait)
            stack.callback(started.terminate)
        for name, probe in product(("scheduler.yaml", "workers.yaml"), ("startupProbe", "readinessProbe", "livenessProbe")):
            get = pod_of(objects[name])["containers"][0][probe]["httpGet"]
            assert _status(f"http://127.0.0.1:{ports[str(get['port'])]}{get['path']}") == 200, (name, probe)
        with Client(f"tcp://127.0.0.1:{ports['8786']}", set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            (worker,) = client.scheduler_info()["workers"].values()
        assert (worker["nthreads"], worker["memory_limit"]) == (1, 870 * 2**20)


def _moved(word: str, ports: dict[str, str], folder: Path) -> str:
    "A word of a command, with ports of this machine and another folder."
    for old, new in ports.items():
        word = word.replace(old, new)
    return {"/tmp": str(folder)}.get(word, word.replace("dask-scheduler:", "127.0.0.1:"))


def _status(url: str) -> int:
    "The status of a response, which is waited for."
    for _ in range(300):
        try:
            return httpx.get(url).status_code
        except httpx.TransportError:
            time.sleep(0.1)
    return 0
