"""What `kustomize build` does, as far as deploy/kubernetes uses it; anything else is refused, not skipped.

No kustomize can be had from a package registry of Python, so the tests build with this, and compare with the real one
where it is on the PATH.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Object = dict[str, Any]
KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "secretGenerator"),
    *("generatorOptions", "images", "patches"),
}
CLUSTER_SCOPED = {"Namespace"}


def build(folder: Path, below: list[Object] | None = None) -> list[Object]:
    """The objects of a kustomization.

    Args:
        folder: of its `kustomization.yaml`.
        below: for a component, the objects that it changes.
    """
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert not wanted.keys() - KNOWN, f"{folder}: {wanted.keys() - KNOWN}"
    objects = below or []
    for name in wanted.get("resources", []):
        objects += build(folder / name) if (folder / name).is_dir() else load(folder / name)
    for name in wanted.get("components", []):
        objects = build(folder / name, objects)
    for one in wanted.get("configMapGenerator", []):
        _generate(objects, one, "ConfigMap", wanted, _data(folder, one))
    for one in wanted.get("secretGenerator", []):
        _generate(objects, one, "Secret", wanted, _data(folder, one))
    for one in wanted.get("patches", []):
        objects = _patched(objects, one, folder)
    _rename_images(objects, wanted.get("images", []))
    if "namespace" in wanted:
        for one in objects:
            if one["kind"] not in CLUSTER_SCOPED:
                one["metadata"]["namespace"] = wanted["namespace"]
    names = [key(one) for one in objects]
    assert len(names) == len(set(names)), f"{folder}: an object is there twice"
    return objects


def load(file: Path) -> list[Object]:
    return [copy.deepcopy(one) for one in yaml.safe_load_all(file.read_text()) if one]


def key(one: Object) -> tuple[str, str, str]:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def _data(folder: Path, one: Object) -> dict[str, str]:
    pairs = list(one.get("literals", []))
    for name in one.get("envs", []):
        pairs += [line for line in (folder / name).read_text().splitlines() if line and not line.startswith("#")]
    data = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
    return data | {name: (folder / name).read_text() for name in one.get("files", [])}


def _generate(objects: list[Object], one: Object, kind: str, wanted: Object, data: dict[str, str]) -> None:
    namespace = one.get("namespace", wanted.get("namespace", ""))
    there = [found for found in objects if found["kind"] == kind and found["metadata"]["name"] == one["name"]]
    behavior = one.get("behavior", "create")
    assert wanted.get("generatorOptions", {}).get("disableNameSuffixHash") or behavior != "create"
    if behavior == "create":
        assert not there, f"{kind} {one['name']} is there already"
        metadata = {"name": one["name"]} | ({"namespace": namespace} if namespace else {})
        objects.append({"apiVersion": "v1", "kind": kind, "metadata": metadata, "data": data})
        return
    (found,) = there
    assert found["metadata"].get("namespace", "") in (namespace, "") or not namespace
    found["data"] = data if behavior == "replace" else found["data"] | data


def _patched(objects: list[Object], one: Object, folder: Path) -> list[Object]:
    target = one["target"]
    chosen = [index for index, found in enumerate(objects) if _matches(found, target)]
    assert chosen, f"{folder}: no object for the patch of {target}"
    for index in chosen:
        objects[index] = jsonpatch.JsonPatch(yaml.safe_load(one["patch"])).apply(objects[index])
    return objects


def _matches(found: Object, target: Object) -> bool:
    group = found["apiVersion"].rpartition("/")[0]
    return (
        found["kind"] == target["kind"]
        and found["metadata"]["name"] == target["name"]
        and target.get("group", group) == group
    )


def _rename_images(value: Any, images: list[Object]) -> None:
    if isinstance(value, list):
        for one in value:
            _rename_images(one, images)
    if isinstance(value, dict):
        for container in [*(value.get("containers") or []), *(value.get("initContainers") or [])]:
            for image in images:
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
        for one in value.values():
            _rename_images(one, images)
