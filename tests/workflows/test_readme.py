"""The README of the workflows: every file, name and test in it is there, and its floors are those that are checked."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.tools import ROOT

PACKAGE, TESTS = ROOT / "workflows", Path(__file__).parent
README = (PACKAGE / "README.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ") and "::test_" in line]
FLOORS = "Each folder of the workflows imports only those on lower floors"


@cache
def names(file: Path) -> set[str]:
    """What a module defines, and what its classes define as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        found |= defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for member in node.body for name in defined(member)}
    return found


def defined(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.AnnAssign(target=ast.Name(name)):
            return {name}
        case _:
            return set()


def section(title: str) -> str:
    """The text below a heading."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_map_is_read() -> None:
    assert len(ROWS) > 70 and all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_idea_has_its_code_and_its_test(row: list[str]) -> None:
    (code,), (test,) = (re.findall(r"`([^`]+)`", cell) for cell in row[1:])
    file, name = code.split("::")
    assert name in names(PACKAGE / file)
    file, name = test.split("::")
    assert name in names(next(place / file for place in (TESTS, TESTS.parent) if (place / file).is_file()))


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert "run_nothing" not in names(PACKAGE / "job" / "pipeline.py")
    assert {"run_job", "Stage", "Stage.summary", "Stage.name"} <= names(PACKAGE / "job" / "pipeline.py")
    assert "STAGES" in names(PACKAGE / "job" / "stages.py")


def floors() -> list[str]:
    """The layers of the contract of import-linter."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found: list[str] = next(contract["layers"] for contract in contracts if contract["name"] == FLOORS)
    return found


def test_the_floors_are_those_that_are_checked() -> None:
    (block,) = re.findall(r"^```text\n(.*?)^```$", section("The floors"), re.MULTILINE | re.DOTALL)
    assert [re.split(r"\s{2,}", line)[0] for line in block.splitlines()] == floors()


def test_every_folder_has_a_part_of_the_map_from_the_top_floor_down() -> None:
    parts = re.findall(r"^\| \*\*(\w+)\*\* \| \| \|$", README, re.MULTILINE)
    assert parts == [folder for floor in floors() for folder in floor.split(" | ")]


def test_a_request_is_followed_in_ten_steps_through_names_that_are_there() -> None:
    _, *steps = re.split(r"^\d+\. ", section("A request, from HTTP to the picture"), flags=re.MULTILINE)
    assert len(steps) == 10
    for step in steps:
        found = re.findall(r"`([^`]+)`", step)
        assert found
        for code in found:
            file, name = code.split("::")
            assert name in names(PACKAGE / file), code


def test_every_other_path_is_there() -> None:
    for path in re.findall(r"`([a-z_/]+(?:\.py|\.toml))`", README):
        assert any((place / path).is_file() for place in (ROOT, PACKAGE, TESTS)), path
