"""Versions on this machine: of Python, of each declared package, and of torch beside torchvision."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement
from packaging.version import Version

from workflows.deploy.doctor.findings import Finding, ok, problem

_LEAST_PYTHON: Final = (3, 11)
_TORCHVISION_AHEAD: Final = 15
"""torchvision 0.(n + 15) is built against torch 2.n: 0.15 for 2.0, 0.26 for 2.11."""


def installed() -> dict[str, str]:
    """Versions of what raverse needs, by name in lower case; absent: not installed."""
    names = [one.name for one in requirements()]
    found = {name: _version(name) for name in names}
    return {name.lower(): version for name, version in found.items() if version is not None}


def requirements() -> list[Requirement]:
    """What raverse declares, extras left out; nothing where only the sources are on the path."""
    try:
        declared = metadata.requires("raverse") or []
    except metadata.PackageNotFoundError:
        declared = []
    return [one for one in map(Requirement, declared) if one.marker is None]


def check_versions(found: Mapping[str, str]) -> Iterator[Finding]:
    """Python and each declared package, within its range."""
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _LEAST_PYTHON:
        yield problem("python", python, "install Python 3.11 or later")
    wrong = [one for one in requirements() if not _fits(one, found)]
    for one in wrong:
        have = found.get(one.name.lower(), "not installed")
        yield problem(one.name, f"{have}, wanted {one.specifier or 'any'}", f"pip install -c constraints.txt '{one}'")
    if not wrong:
        shown = ", ".join(f"{name} {found[name]}" for name in ("ray", "torch", "mlflow") if name in found)
        yield ok("versions", f"python {python}, {shown}")


def check_pairing(found: Mapping[str, str]) -> Finding:
    """The two packages must come from one release, and from one index (`+cu130`, `+cpu`)."""
    if "torch" not in found or "torchvision" not in found:
        return problem(
            "torch pairing", "torch or torchvision is missing", "pip install -c constraints.txt torch torchvision"
        )
    torch, vision = Version(found["torch"]), Version(found["torchvision"])
    wanted = f"0.{torch.minor + _TORCHVISION_AHEAD}"
    shown = f"torch {torch}, torchvision {vision}"
    if torch.major == 2 and vision.minor != torch.minor + _TORCHVISION_AHEAD:
        return problem(
            "torch pairing", shown, f"pip install 'torchvision=={wanted}.*', made for torch {torch.base_version}"
        )
    if torch.local and vision.local and torch.local != vision.local:
        return problem("torch pairing", shown, f"install both from one index: torchvision for {torch.local}")
    return ok("torch pairing", shown)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(requirement: Requirement, found: Mapping[str, str]) -> bool:
    version = found.get(requirement.name.lower())
    return version is not None and requirement.specifier.contains(version, prereleases=True)
