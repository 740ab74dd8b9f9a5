"""The core's README: its code runs, and every name and test in its tables is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import diffusion_core

README = (Path(diffusion_core.__file__).parent / "README.md").read_text()
ROWS = [line.split(" | ") for line in README.splitlines() if line.startswith("| ") and "::test_" in line]
TESTS = {
    f"{file.name}::{node.name}"
    for file in Path(__file__).parent.rglob("test_*.py")
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.FunctionDef)
}


def found(name: str) -> Any:
    """`a.b` as a public name with an attribute, or as a module with one."""
    first, *rest = name.split(".")
    value = (
        getattr(diffusion_core, first)
        if first in diffusion_core.__all__
        else importlib.import_module(f"diffusion_core.{first}")
    )
    for part in rest:
        value = getattr(value, part)
    return value


def test_the_table_is_read():
    assert len(ROWS) > 30 and all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_every_idea_has_its_name_and_its_test(row):
    names = re.findall(r"`([^`]+)`", row[2])
    assert names
    for name in names:
        assert found(name).__doc__
    assert re.findall(r"`([^`]+)`", row[3])[0] in TESTS


def test_the_code_runs():
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert tuple(names["loss"].shape) == (32,) and names["points"].shape == (3, 2)
    assert any(part.grad is not None for part in names["network"].parameters())
