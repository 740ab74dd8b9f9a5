"""Every folder of code is a package: import-linter reads no other, so its floors would not hold there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import ROOT


def unread(package: Path) -> set[str]:
    """The folders with code, their own or below them, that have no `__init__.py`."""
    folders = {folder for file in package.rglob("*.py") for folder in file.parents if folder.is_relative_to(package)}
    return {str(folder.relative_to(package.parent)) for folder in folders if not (folder / "__init__.py").is_file()}


@pytest.mark.parametrize("name", ["diffusion_core", "workflows"])
def test_every_folder_with_code_has_an_init(name: str) -> None:
    assert list((ROOT / name).rglob("*.py"))
    assert unread(ROOT / name) == set()


def test_a_folder_without_one_is_noticed_also_above_a_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    for file in ("__init__.py", "whole/__init__.py", "stray/a.py", "outer/inner/__init__.py"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text("")
    (package / "pictures").mkdir()
    assert unread(package) == {"package/stray", "package/outer"}
