"""The Kubernetes files: what every overlay builds to, and what `raverse render kubernetes` writes."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.deploy import kustomize
from tests.tools import kuberay_schemas, need
from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.deploy.kubernetes import Overlay, Preset, render
from workflows.errors import InvalidConfig
from workflows.serve.settings import ServeArgs

FILES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FILES / "overlays").iterdir())
PLACES = [FILES / "base", *(FILES / "overlays" / name for name in OVERLAYS)]
RAY_PODS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


@cache
def built(place: Path) -> list[dict[str, Any]]:
    return kustomize.build(place)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def one_of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = of_kind(objects, kind)
    return found


def ray_cluster(one: dict[str, Any]) -> dict[str, Any]:
    return one["spec"][RAY_PODS[one["kind"]]]


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in objects:
        if one["kind"] in RAY_PODS:
            cluster = ray_cluster(one)
            yield from (group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
        elif one["kind"] in ("Deployment", "StatefulSet"):
            yield one["spec"]["template"]["spec"]


def check_serve_config(objects: list[dict[str, Any]]) -> ServeArgs:
    config = yaml.safe_load(one_of_kind(objects, "RayService")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "workflows.serve.app:build"
    return ServeArgs.read(application.args)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_ray_objects_have_what_kuberay_asks_for(place: Path) -> None:
    objects = built(place)
    for one in (one_of_kind(objects, "RayJob"), one_of_kind(objects, "RayService")):
        assert one["apiVersion"] == "ray.io/v1"
        cluster = ray_cluster(one)
        assert cluster["headGroupSpec"]["template"]["spec"]["containers"]
        assert cluster["autoscalerOptions"]["version"] == "v2"
        for group in cluster["workerGroupSpecs"]:
            assert group.keys() >= {"groupName", "minReplicas", "maxReplicas", "template"}
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert "redisAddress" in ray_cluster(one_of_kind(objects, "RayService"))["gcsFaultToleranceOptions"]
    assert "kueue.x-k8s.io/queue-name" in one_of_kind(objects, "RayJob")["metadata"]["labels"]
    assert RunConfig.model_validate(yaml.safe_load(config_map(objects)["run.yaml"])).storage.root == "/shared/raverse"
    assert check_serve_config(objects).require_key == "always"


def config_map(objects: list[dict[str, Any]], name: str = "raverse-config") -> dict[str, str]:
    (found,) = [one["data"] for one in of_kind(objects, "ConfigMap") if one["metadata"]["name"] == name]
    return found


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_ray_objects_fit_the_strict_schemas(place: Path) -> None:
    for kind in RAY_PODS:
        schema = strict_schema(kind)
        schema.validate(one_of_kind(built(place), kind))
        assert not schema.is_valid(one_of_kind(built(place), kind) | {"spec": {"serveConfigV3": ""}})


@cache
def strict_schema(kind: str) -> jsonschema.Draft202012Validator:
    file = kuberay_schemas() / f"ray.io_{kind.lower()}s.yaml"
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"] if one["name"] == "v1"]
    # Not `jsonschema.validate`: it checks the schema itself each time, which takes a minute for one of this size.
    return jsonschema.Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """Unknown fields are refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(one) for name, one in schema.items() if name != "format"}
    if "x-kubernetes-int-or-string" in schema:
        schema.pop("pattern", None)
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and schema["properties"].keys() != {"apiVersion", "kind", "metadata", "spec", "status"}
    ):
        schema.setdefault("additionalProperties", False)
    if "metadata" in schema.get("properties", {}) and schema["properties"]["metadata"] == {"type": "object"}:
        schema["properties"]["metadata"] = {}
    return schema


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_pod_is_unprivileged_and_says_what_it_needs(place: Path) -> None:
    specs = list(pod_specs(built(place)))
    assert len(specs) >= 7
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | {"data"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_what_objects_name_is_there(place: Path) -> None:
    objects = built(place)
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "Service")}
    labels = [
        one["spec"]["template"]["metadata"]["labels"]
        for kind in ("Deployment", "StatefulSet")
        for one in of_kind(objects, kind)
    ]
    for name, spec in services.items():
        assert spec["selector"] in labels or name == "ray-metrics"
    monitor = one_of_kind(objects, "ServiceMonitor")["spec"]
    chosen = monitor["selector"]["matchLabels"]
    (metrics,) = [one for one in of_kind(objects, "Service") if one["metadata"].get("labels") == chosen]
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in metrics["spec"]["ports"]]
    assert len(of_kind(objects, "PodDisruptionBudget")) == 3
    for spec in pod_specs(objects):
        for volume in spec.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                assert (
                    volume["persistentVolumeClaim"]["claimName"]
                    == one_of_kind(objects, "PersistentVolumeClaim")["metadata"]["name"]
                )
            if "configMap" in volume:
                config_map(objects, volume["configMap"]["name"])


def test_stores_have_probes() -> None:
    for kind in ("Deployment", "StatefulSet"):
        for one in of_kind(built(FILES / "base"), kind):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_the_secure_overlay_asks_for_passwords_and_shuts_doors() -> None:
    objects, plain = built(FILES / "overlays" / "secure"), built(FILES / "base")
    for kind in RAY_PODS:
        assert ray_cluster(one_of_kind(objects, kind))["authOptions"] == {"mode": "token"}
        assert "authOptions" not in ray_cluster(one_of_kind(plain, kind))
    assert config_map(objects, "mlflow") == config_map(plain, "mlflow") | {"AUTHENTICATION": "basic-auth"}
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "NetworkPolicy")}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert policies.keys() == {"nobody", "ray", "mlflow", "postgres", "redis"}
    assert not of_kind(plain, "NetworkPolicy")


def test_a_patch_without_its_target_is_found(tmp_path: Path) -> None:
    copied = shutil.copytree(FILES, tmp_path / "kubernetes")
    file = copied / "overlays" / "gpu" / "kustomization.yaml"
    file.write_text(file.read_text().replace("workerGroupSpecs/1", "workerGroupSpecs/7"))
    with pytest.raises(Exception, match="7"):
        kustomize.build(file.parent)
    file.write_text(file.read_text().replace("kind: RayJob", "kind: RayJobs"))
    with pytest.raises(AssertionError, match="no object for the patch"):
        kustomize.build(file.parent)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_kustomize_builds_the_same(place: Path) -> None:
    program = need(shutil.which("kustomize"), "kustomize", "put it on the PATH", in_ci=False)
    done = subprocess.run([program, "build", str(place)], capture_output=True, text=True, check=True)
    assert sorted(yaml.safe_load_all(done.stdout), key=kustomize.key) == sorted(built(place), key=kustomize.key)


@pytest.mark.parametrize(
    ("overlay", "preset", "gpus"), [("cpu-small", "plain", 0), ("gpu", "secure", 4), ("base", "secure", 0)]
)
def test_rendered_files_build_to_the_job_of_the_configuration(
    tmp_path: Path, overlay: Overlay, preset: Preset, gpus: int
) -> None:
    config = load_config("shapes", ["denoiser.train.num_workers=3", "serve.max_replicas=5", "serve.num_steps=20"])
    render(config, tmp_path / "out", overlay, preset, "registry.example.com/team/raverse:7", gpus)
    objects = kustomize.build(tmp_path / "out")
    job = one_of_kind(objects, "RayJob")
    group = ray_cluster(job)["workerGroupSpecs"][1 if gpus else 0]
    assert group["replicas"] == group["maxReplicas"] == (gpus or 3)
    assert ("--gpus 4" in job["spec"]["entrypoint"]) == (gpus == 4)
    pods = RunConfig.model_validate(yaml.safe_load(config_map(objects)["run.yaml"]))
    assert pods.storage.root == "/shared/raverse"
    assert pods.model_copy(update={"storage": config.storage}) == config
    args = check_serve_config(objects)
    assert (args.model, args.max_replicas, args.num_steps) == ("raverse-shapes@champion", 5, 20)
    assert args.num_gpus == (1.0 if gpus else 0.0)
    images = {container["image"] for spec in pod_specs(objects) for container in spec["containers"]}
    assert "registry.example.com/team/raverse:7-cpu" in images
    assert ("registry.example.com/team/raverse:7-cuda" in images) == (overlay != "cpu-small")
    assert bool(of_kind(objects, "NetworkPolicy")) == (preset == "secure")


def test_passwords_are_made_once_and_are_private(tmp_path: Path) -> None:
    config = load_config("digits")
    for _ in range(2):
        render(config, tmp_path, "base", "secure", "raverse:1", 0)
        text = (tmp_path / "secrets.env").read_text()
    assert stat.S_IMODE((tmp_path / "secrets.env").stat().st_mode) == 0o600
    render(config, tmp_path, "base", "secure", "raverse:2", 0)
    assert (tmp_path / "secrets.env").read_text() == text
    secret = one_of_kind(kustomize.build(tmp_path), "Secret")["data"]
    named = {
        env["valueFrom"]["secretKeyRef"]["key"]
        for spec in pod_specs(built(FILES / "base"))
        for container in spec["containers"]
        for env in container["env"]
        if "valueFrom" in env and not env["valueFrom"]["secretKeyRef"].get("optional")
    }
    assert named <= secret.keys()
    (tmp_path / "secrets.env").chmod(0o644)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        render(config, tmp_path, "base", "secure", "raverse:2", 0)


@pytest.mark.parametrize(
    ("overlay", "image", "gpus", "overrides", "part"),
    [
        ("cpu-small", "raverse:1", 2, [], "has no GPUs"),
        ("gpu", "raverse", 2, [], "wanted NAME:TAG"),
        ("base", "raverse:1", 0, ["data.source=auto", "data.path=/home/me/photos"], "is on this machine"),
    ],
)
def test_what_pods_could_not_use_is_refused(
    tmp_path: Path, overlay: Overlay, image: str, gpus: int, overrides: list[str], part: str
) -> None:
    with pytest.raises(InvalidConfig, match=part):
        render(load_config("digits", overrides), tmp_path, overlay, "plain", image, gpus)
