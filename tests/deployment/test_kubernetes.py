"""Manifests for Kubernetes and KServe: schemas, references between objects, what the service really does, kubectl's Kustomize."""

import shutil
import subprocess
from copy import deepcopy
from itertools import chain
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from toy_releases import toy_release

from mlcycle.deployment.kubernetes import DRAIN_SECONDS, GRACE_SECONDS, SERVICE_PORT, write_kserve, write_kubernetes
from mlcycle.errors import ArtifactError, ParameterError
from mlcycle.service.access_control import OPEN_PATHS
from mlcycle.service.graceful_stop import GracefulStop
from mlcycle.service.platforms import DEFAULT_PORT
from mlcycle.service.server import read_arguments

VERSION = "1.37"  # Of the schemas


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "The folders of manifests for Kubernetes and for KServe."
    folder = tmp_path_factory.mktemp("kubernetes")
    release = toy_release(folder, 3, trees=False)
    return write_kubernetes(release, folder / "dist"), write_kserve(release, folder / "dist")


def read_objects(folder: Path) -> dict[str, dict]:
    "The objects of a folder by path."
    return {path.relative_to(folder).as_posix(): yaml.safe_load(path.read_text()) for path in folder.rglob("*.yaml")}


def kubernetes_own(objects: dict[str, dict]) -> list[dict]:
    "The objects of Kubernetes itself, whose schemas are known."
    return [each for each in objects.values() if not each["apiVersion"].startswith(("kustomize.", "monitoring.", "serving."))]


def containers_of(objects: dict[str, dict]) -> list[dict]:
    "The containers of all Deployments."
    pods = [each["spec"]["template"]["spec"] for each in objects.values() if each["kind"] == "Deployment"]
    return [*chain.from_iterable(pod["containers"] for pod in pods)]


def test_all_objects_have_the_form_that_kubernetes_expects(written):
    own = kubernetes_own(read_objects(written[0]))
    kinds = {each["kind"] for each in own}
    assert kinds == {"Deployment", "Service", "ServiceAccount", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy",
                     "Namespace"}  # fmt: skip
    for each in own:
        kubernetes_validate.validate(each, VERSION, strict=True)
        wrong = deepcopy(each)
        wrong["specs"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_container_of_kserve_has_the_form_of_a_pod(written):
    """Its own schema is not to be had: the metadata and the fields that a predictor shares with a pod are checked as a pod."""
    for name, each in read_objects(written[1]).items():
        assert (each["apiVersion"], each["kind"], [*each["spec"]]) == (
            "serving.kserve.io/v1beta1", "InferenceService", ["predictor"])  # fmt: skip
        predictor = each["spec"]["predictor"]
        own = {"minReplicas", "maxReplicas", "timeout", "canaryTrafficPercent"}
        spec = {field: value for field, value in predictor.items() if field not in own}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": each["metadata"], "spec": spec}
        kubernetes_validate.validate(pod, VERSION, strict=True)
        assert [*spec] == ["containers", "volumes"] and spec["containers"][0]["name"] == "kserve-container"
        assert predictor.get("canaryTrafficPercent") == (10 if name.startswith("canary/") else 100)
        spec["containers"][0]["port"] = 8080
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, VERSION, strict=True)


def test_pods_are_restricted_and_nothing_secret_is_written(written):
    kserve = [each["spec"]["predictor"]["containers"][0] for each in read_objects(written[1]).values()]
    objects = read_objects(written[0])
    for container in [*containers_of(objects), *kserve]:
        security = container["securityContext"]
        assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]} and security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("value" not in each and each["valueFrom"]["secretKeyRef"]["name"] == "toy" for each in container["env"])
    pods = [each["spec"]["template"]["spec"] for each in objects.values() if each["kind"] == "Deployment"]
    assert all(pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"] for pod in pods)
    assert all(pod["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}] for pod in pods)
    assert not any(each["kind"] == "Secret" for each in objects.values())
    labels = objects["overlays/production/namespace.yaml"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_objects_refer_to_each_other(written):
    objects = read_objects(written[0])
    base = {each["kind"]: each for name, each in objects.items() if name.startswith("base/")}
    canary = objects["overlays/canary/deployment.yaml"]
    labels = {track: each["spec"]["template"]["metadata"]["labels"]
              for track, each in (("stable", base["Deployment"]), ("canary", canary))}  # fmt: skip
    for kind, path in (("Service", ["selector"]), ("PodDisruptionBudget", ["selector", "matchLabels"]),
                       ("NetworkPolicy", ["podSelector", "matchLabels"])):  # fmt: skip
        selector = base[kind]["spec"]
        for step in path:
            selector = selector[step]
        assert selector.items() <= labels["stable"].items() and selector.items() <= labels["canary"].items(), kind
    for track, each in (("stable", base["Deployment"]), ("canary", canary)):
        own, other = each["spec"]["selector"]["matchLabels"].items(), {"stable": "canary", "canary": "stable"}[track]
        assert own <= labels[track].items() and not own <= labels[other].items()
    target = base["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", base["Deployment"]["metadata"]["name"])
    assert "replicas" not in base["Deployment"]["spec"]  # Or each update would undo what the autoscaler has done
    assert base["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == base["ServiceAccount"]["metadata"]["name"]
    assert {*objects["base/kustomization.yaml"]["resources"]} == {
        path.name for path in (written[0] / "base").iterdir() if path.name != "kustomization.yaml"
    }


def test_the_image_of_an_option_is_in_all_overlays(tmp_path):
    release, digest = toy_release(tmp_path, 4, trees=False), "sha256:" + "0a" * 32
    plain = read_objects(write_kubernetes(release, tmp_path / "dist", "registry.test:5000/a/toy:v4"))
    pinned = read_objects(write_kubernetes(release, tmp_path / "dist", f"registry.test/toy@{digest}"))
    for name in ("overlays/production/kustomization.yaml", "overlays/canary/kustomization.yaml"):
        assert plain[name]["images"] == [{"name": "toy", "newName": "registry.test:5000/a/toy", "newTag": "v4"}]
        assert pinned[name]["images"] == [{"name": "toy", "newName": "registry.test/toy", "digest": digest}]
    for each in read_objects(write_kserve(release, tmp_path / "dist", "registry.test/toy:4")).values():
        assert each["spec"]["predictor"]["containers"][0]["image"] == "registry.test/toy:4"
    with pytest.raises(ParameterError, match="not valid"):
        write_kubernetes(release, tmp_path / "dist", "Bad Tag!")


def test_nothing_scrapes_without_a_key(written):
    """`/metrics` needs a key, which scraping by annotation does not send."""
    assert "/metrics" not in OPEN_PATHS
    assert not any("prometheus.io" in path.read_text() for path in written[0].rglob("*.yaml"))


def test_ports_probes_and_times_are_those_of_the_service(written):
    objects = read_objects(written[0])
    kserve = [each["spec"]["predictor"]["containers"][0] for each in read_objects(written[1]).values()]
    for container in [*containers_of(objects), *kserve]:
        assert [each["containerPort"] for each in container["ports"]] == [SERVICE_PORT] == [DEFAULT_PORT]
        probes = [probe for name, probe in container.items() if name.endswith("Probe")]
        assert len(probes) >= 2
        assert all(probe["httpGet"]["path"] in OPEN_PATHS and probe["httpGet"]["port"] == SERVICE_PORT for probe in probes)
        options, _ = read_arguments([*container["args"]])
        assert options.drain_seconds == DRAIN_SECONDS
    assert GRACE_SECONDS > GracefulStop(lambda: None, lambda: None).stop_seconds > DRAIN_SECONDS
    rule = objects["base/network-policy.yaml"]["spec"]
    assert rule["ingress"][0]["ports"] == [{"port": SERVICE_PORT, "protocol": "TCP"}] and rule["policyTypes"] == [
        "Ingress",
        "Egress",
    ]
    assert [port["port"] for each in rule["egress"] for port in each["ports"]] == [53, 53, 5353, 5353, 5432]
    assert objects["base/service.yaml"]["spec"]["ports"][0]["targetPort"] == SERVICE_PORT


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl, with its Kustomize, is not installed")
@pytest.mark.parametrize("overlay", ["production", "canary"])
def test_kustomize_puts_the_overlays_together(written, overlay, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "manifests")
    path = folder / "overlays" / overlay / "kustomization.yaml"
    if overlay == "production":
        path.write_text(path.read_text() + "components: [../../components/pod-monitor]\n")
    done = subprocess.run(["kubectl", "kustomize", path.parent], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    built = [*yaml.safe_load_all(done.stdout)]
    for each in built:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "toy"
        if each["kind"] != "PodMonitor":
            kubernetes_validate.validate(each, VERSION, strict=True)
        if each["kind"] == "Deployment":
            assert each["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example.com/toy:3"
        if each["kind"] == "HorizontalPodAutoscaler":
            assert each["spec"]["minReplicas"] == 3
    assert len(built) == (8 if overlay == "production" else 1)


def test_an_altered_release_gives_no_manifests(tmp_path):
    release = toy_release(tmp_path, 1, trees=False)
    (release / "requirements.txt").write_text("other\n")
    for write in (write_kubernetes, write_kserve):
        with pytest.raises(ArtifactError, match="requirements.txt .* has been altered"):
            write(release, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()
