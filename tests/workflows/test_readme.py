"""The map of the workflows: what it names is there, and no folder is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import workflows

FOLDER = Path(workflows.__file__).parent
ROOT = FOLDER.parent
README = (FOLDER / "README.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| `([\w./]+)` \|.*\|$", README, re.MULTILINE)


def test_every_file_that_the_map_names_is_there() -> None:
    named = [path for path in re.findall(r"`([\w/.]+\.py)`", README) if "NAME" not in path]
    assert len(named) > 40
    missing = [path for path in named if not (FOLDER / path).is_file() and not (ROOT / path).is_file()]
    assert missing == []


def test_the_floors_are_those_that_import_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one.get("containers") == ["workflows"])
    floors = {name: len(layers) - 1 - place for place, layer in enumerate(layers) for name in layer.split(" | ")}
    assert {name.removesuffix("/").removesuffix(".py"): int(floor) for floor, name in ROWS} == floors


def test_the_followed_request_names_what_is_there() -> None:
    steps = re.findall(r"^\d+\. (.*)$", README, re.MULTILINE)
    assert len(steps) == 10
    code = (
        "\n".join(path.read_text() for path in (FOLDER / "serve").rglob("*.py"))
        + (ROOT / "diffusion_core" / "row.py").read_text()
        + (ROOT / "diffusion_core" / "condition.py").read_text()
    )
    names = {name for step in steps for name in re.findall(r"`(\w+(?:\.\w+)?)`", step)}
    missing = [name for name in names if not re.search(rf"\b(def|class) {name.rpartition('.')[2]}\b", code)]
    assert missing == []
