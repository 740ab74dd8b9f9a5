"""Reads a configuration: a YAML file or a built-in name, then `--set a.b=c`; faults name the nearest valid key."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from workflows.config.faults import describe, place
from workflows.config.schema import RunConfig, StorageConfig
from workflows.errors import InvalidConfig


def load_config(name_or_file: str, overrides: list[str] | None = None) -> RunConfig:
    """Reads a built-in configuration by name, or a YAML file, and applies `a.b=c` overrides.

    Args:
        name_or_file: `digits`, `shapes`, or the path of a YAML file.
        overrides: items such as `denoiser.train.steps=100`; values are YAML.

    Raises:
        InvalidConfig: no such file, not YAML, an unknown key, or a value out of range.
    """
    values = _read(name_or_file)
    for item in overrides or []:
        _override(values, item)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidConfig(_explain(name_or_file, error)) from None


def saved_config(text: str, storage: StorageConfig, overrides: list[str] | None = None) -> RunConfig:
    """A configuration as a model version of the registry keeps it, with the present storage.

    Args:
        text: `RunConfig` as JSON.
        storage: where the present command looks.
        overrides: as in `load_config`.

    Raises:
        InvalidConfig: it is of a version of raverse that had other keys, or an override is wrong.
    """
    values = json.loads(text)
    values["storage"] = storage.model_dump(mode="json")
    for item in overrides or []:
        _override(values, item)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        what = "of the model version (give --config if it is of another raverse)"
        raise InvalidConfig(_explain(what, error)) from None


def builtin_configs() -> list[str]:
    """Names that `--config` takes without a file."""
    folder = resources.files("workflows.config") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(name_or_file: str) -> dict[str, Any]:
    if name_or_file in builtin_configs():
        text = (resources.files("workflows.config") / "presets" / f"{name_or_file}.yaml").read_text()
    elif Path(name_or_file).is_file():
        text = _read_text(Path(name_or_file))
    else:
        raise InvalidConfig(
            f"no configuration {name_or_file!r}: give one of {', '.join(builtin_configs())}, or the path of a YAML file"
        )
    values = _parse(text, name_or_file)
    if not isinstance(values, dict):
        raise InvalidConfig(f"{name_or_file} holds {type(values).__name__}, wanted a mapping of sections")
    return values


def _read_text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{file} cannot be read ({error}): give a YAML file") from None


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def _override(values: dict[str, Any], item: str) -> None:
    path, separator, value = item.partition("=")
    if not separator or not path:
        raise InvalidConfig(f"--set {item!r}: wanted KEY=VALUE, such as denoiser.train.steps=100")
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InvalidConfig(f"--set {path}: {parent!r} is a value, not a section")
    values[last] = _parse(value, f"--set {item!r}")


def _explain(name: str, error: ValidationError) -> str:
    return f"configuration {name}: " + "; ".join(_explain_one(fault) for fault in error.errors())


def _explain_one(fault: Any) -> str:
    path = place(fault)
    if fault["type"] != "extra_forbidden":
        return f"{path}: {describe(fault)}"
    near = difflib.get_close_matches(path, config_keys(), n=1, cutoff=0.5)
    return f"{path}: unknown key" + (f"; did you mean {near[0]}?" if near else "")


def config_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every key that a configuration may set, as dotted paths."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        keys.append(path)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += config_keys(field.annotation, path + ".")
    return keys
