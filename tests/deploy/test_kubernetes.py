"""Tests that the Kubernetes manifests match the API's schemas, each other and the image."""

from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.http.server import options
from tests.deploy.checks import DEPLOY
from tests.deploy.image import stages, words
from utils.settings import Settings

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def manifests() -> list[dict[str, Any]]:
    return [found for name in KUSTOMIZATION["resources"] for found in yaml.safe_load_all((FOLDER / name).read_text())]


def one(kind: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests() if manifest["kind"] == kind]
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    found: dict[str, Any] = one("Deployment")["spec"]["template"]["spec"]
    return found


def test_every_file_is_applied() -> None:
    assert {*KUSTOMIZATION["resources"], "kustomization.yaml"} == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("manifest", manifests(), ids=lambda found: f"{found['kind']}-{found['metadata']['name']}")
def test_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.31", strict=True)
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_schema_refuses_a_mistake() -> None:
    manifest = one("Deployment")
    manifest["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_one_pod_that_is_gone_before_the_next(pod: dict[str, Any]) -> None:
    spec = one("Deployment")["spec"]
    assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause + options(Settings(profile="pocket"))["graceful_timeout"]


def test_labels_and_ports_meet(pod: dict[str, Any]) -> None:
    labels = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        one("Deployment")["spec"]["selector"]["matchLabels"],
        one("Service")["spec"]["selector"],
        one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (port,) = pod["containers"][0]["ports"]
    assert port["containerPort"] == int(stages()["production"].last("EXPOSE"))
    assert one("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert pod["containers"][0][probe]["httpGet"]["port"] == port["name"]
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_every_folder_that_is_written_is_a_volume(pod: dict[str, Any]) -> None:
    image = stages()["production"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {*words(image.last("VOLUME")), "/tmp", "/home/app"} == {
            mount["mountPath"] for mount in container["volumeMounts"]
        }
    claims = {found["metadata"]["name"] for found in manifests() if found["kind"] == "PersistentVolumeClaim"}
    claimed = {
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    }
    assert claimed == claims


def test_user_is_the_images(pod: dict[str, Any]) -> None:
    user, group = map(int, stages()["production"].last("USER").split(":"))
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)


def test_gpu(pod: dict[str, Any]) -> None:
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in pod["initContainers"][0]["resources"]["limits"]


def test_a_service_sets_no_setting(pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes' variables for a Service's name would be read as settings, so they are disabled."""
    assert pod["enableServiceLinks"] is False
    monkeypatch.setenv(f"{one('Service')['metadata']['name'].upper()}_PORT", "tcp://10.0.0.1:5000")
    with pytest.raises(ValueError, match="port"):
        Settings()


def test_settings_are_known(pod: dict[str, Any]) -> None:
    for container in (*pod["initContainers"], *pod["containers"]):
        given = {entry["name"].removeprefix("SWITCHYARD_").lower(): entry["value"] for entry in container["env"]}
        Settings(**given)
