"""Kubernetes files from the configuration of the local run.

`deploy/kubernetes` holds what is the same for everybody: a kustomize base, overlays, components. `render` writes a
folder above them: the configuration as pods see it, the Serve config, the numbers of workers, passwords. `kubectl apply
-k FOLDER` takes it from there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from workflows import __version__
from workflows.config.schema import RunConfig
from workflows.deploy.secrets import secrets_file
from workflows.errors import InvalidConfig
from workflows.options.sources import BUILT_IN_DATA
from workflows.serve.settings import ServeArgs

Overlay = Literal["base", "cpu-small", "gpu"]
Preset = Literal["plain", "secure"]

SHARED: Final = "/shared"
TRACKING: Final = "http://mlflow:5000"
_FILES: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
_KUSTOMIZE: Final = "kustomize.config.k8s.io/v1beta1"
_JOB: Final = {"group": "ray.io", "kind": "RayJob", "name": "raverse"}
_SERVICE: Final = {"group": "ray.io", "kind": "RayService", "name": "raverse"}


def render(config: RunConfig, folder: Path, overlay: Overlay, preset: Preset, image: str, num_gpus: int) -> list[Path]:
    """Writes the folder; passwords that are there already stay.

    Args:
        config: of the local run.
        folder: to write.
        overlay: of `deploy/kubernetes/overlays`, or `base`.
        preset: `secure` adds passwords and network policies.
        image: NAME:TAG of the images NAME:TAG-cpu and NAME:TAG-cuda.
        num_gpus: training workers, one GPU each; 0: the CPU workers of the configuration.

    Returns:
        the files.

    Raises:
        InvalidConfig: paths that pods do not see, an overlay without GPUs, or no checkout around this package.
    """
    if not _FILES.is_dir():
        raise InvalidConfig(f"no {_FILES}: the Kubernetes files are in a checkout of raverse, run the command there")
    if not all(image.rpartition(":")):
        raise InvalidConfig(f"--image {image}: wanted NAME:TAG, such as registry.example.com/raverse:{__version__}")
    if num_gpus and overlay == "cpu-small":
        raise InvalidConfig("--overlay cpu-small has no GPUs: give --overlay gpu, or leave --gpus out")
    pods = as_pods_see_it(config)
    secrets_file(folder / "secrets.env")
    texts = {
        "run.yaml": _dump(pods.model_dump(mode="json", by_alias=True, exclude_defaults=True)),
        "kustomization.yaml": _dump(_kustomization(pods, folder, overlay, preset, image, num_gpus)),
        ".gitignore": "secrets.env\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in (*texts, "secrets.env")]


def as_pods_see_it(config: RunConfig) -> RunConfig:
    """The configuration with the paths and addresses of the pods.

    Raises:
        InvalidConfig: the user's own data is on this machine.
    """
    path = config.data.path
    if config.data.source not in BUILT_IN_DATA and path and "://" not in path and not path.startswith(f"{SHARED}/"):
        raise InvalidConfig(f"data.path={path} is on this machine: give a URL, or copy it to {SHARED}/ on the volume")
    root = config.storage.root if config.storage.root.startswith(f"{SHARED}/") else f"{SHARED}/raverse"
    storage = config.storage.model_copy(update={"root": root, "tracking_uri": config.storage.tracking_uri or TRACKING})
    serve = config.serve.model_copy(update={"api_keys_file": None})
    return config.model_copy(update={"storage": storage, "serve": serve})


def serve_config(config: RunConfig, num_gpus: float) -> dict[str, Any]:
    """The Serve config file of the pods; the keys of clients are in the Secret."""
    args = ServeArgs.of(config).model_copy(update={"require_key": "always", "num_gpus": num_gpus})
    application = {
        "name": "raverse",
        "route_prefix": "/",
        "import_path": "workflows.serve.app:build",
        "args": args.model_dump(mode="json", exclude_defaults=True),
    }
    listens = {"host": "0.0.0.0", "port": 8000}  # noqa: S104 - inside the pod, with API keys
    return {"proxy_location": "EveryNode", "http_options": listens, "applications": [application]}


def _kustomization(
    config: RunConfig, folder: Path, overlay: Overlay, preset: Preset, image: str, num_gpus: int
) -> dict[str, Any]:
    place = "base" if overlay == "base" else f"overlays/{overlay}"
    names = {"namespace": "raverse"}
    name, _, tag = image.rpartition(":")
    return {
        "apiVersion": _KUSTOMIZE,
        "kind": "Kustomization",
        "resources": [_from(folder, place)],
        "components": [_from(folder, "components/secure")] if preset == "secure" else [],
        "configMapGenerator": [names | {"name": "raverse-config", "behavior": "replace", "files": ["run.yaml"]}],
        "secretGenerator": [names | {"name": "raverse-secrets", "envs": ["secrets.env"]}],
        "generatorOptions": {"disableNameSuffixHash": True},
        "images": [
            {"name": "raverse", "newName": name, "newTag": f"{tag}-cpu"},
            {"name": "raverse-gpu", "newName": name, "newTag": f"{tag}-cuda"},
        ],
        "patches": _patches(config, num_gpus),
    }


def _patches(config: RunConfig, num_gpus: int) -> list[dict[str, Any]]:
    group, workers = (1, num_gpus) if num_gpus else (0, config.most_workers)
    where = f"/spec/rayClusterSpec/workerGroupSpecs/{group}"
    serve = _dump(serve_config(config, 1.0 if num_gpus else 0.0))
    command = "--config /etc/raverse/run.yaml"
    gpus = f" --gpus {num_gpus}" if num_gpus else ""
    return [
        _patch(
            _JOB,
            {
                f"{where}/replicas": workers,
                f"{where}/maxReplicas": workers,
                "/spec/entrypoint": f"raverse doctor {command}{gpus} && raverse run {command}",
            }
            | ({f"{where}/minReplicas": workers} if num_gpus else {}),
        ),
        _patch(_SERVICE, {"/spec/serveConfigV2": serve}),
    ]


def _patch(target: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    operations = [{"op": "replace", "path": path, "value": value} for path, value in values.items()]
    return {"target": dict(target), "patch": _dump(operations)}


def _from(folder: Path, place: str) -> str:
    return os.path.relpath(_FILES / place, folder.absolute())


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a reader sees them as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dump(values: object) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=1000)
