"""How many files it takes to add one of each thing that grows: each is added to a copy of the code, and works there."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

from tests.tools import ROOT
from tests.workflows.growth.edits import Edit, below, make, new_file

GROWTHS: dict[str, ModuleType] = {
    name: importlib.import_module(f"tests.workflows.growth.{name}")
    for name in ("guidance", "setting", "sampler", "field", "network", "source", "stage", "verb")
}
"""Each has a name, the edits, the most files that they may touch, and the check that runs in the copy."""
README = (ROOT / "workflows" / "README.md").read_text()


def copy_code(target: Path) -> Path:
    """A copy of the code, to be edited; compiled files come along, since what was not edited is not compiled again."""
    for package in ("diffusion_core", "workflows"):
        shutil.copytree(ROOT / package, target / package)
    shutil.copy2(ROOT / "pyproject.toml", target)
    return target


def touched(copy: Path) -> list[str]:
    """The files of a copy that are new or different, or gone."""
    names = {str(file.relative_to(root)) for root in (copy, ROOT) for file in files(root)}
    return sorted(name for name in names if content(copy / name) != content(ROOT / name))


def files(root: Path) -> list[Path]:
    packages = [root / "diffusion_core", root / "workflows"]
    found = [file for package in packages for file in package.rglob("*") if file.is_file()]
    return [root / "pyproject.toml", *(file for file in found if "__pycache__" not in file.parts)]


def content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def without_one(edits: tuple[Edit, ...]) -> list[Edit]:
    """The edits but for those of the last file."""
    return [edit for edit in edits if edit.path != edits[-1].path]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name of the growth: a copy with all of its edits; and by the name with a dash, one without the last file's."""
    root = tmp_path_factory.mktemp("copies")
    made = {name: copy_code(root / name) for growth in GROWTHS for name in (growth, f"{growth}-")}
    for name, growth in GROWTHS.items():
        make(growth.EDITS, made[name])
        make(without_one(growth.EDITS), made[f"{name}-"])
    return made


@pytest.fixture(scope="module")
def outputs(copies: dict[str, Path], tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the check of each growth says in each of its copies."""
    folder = tmp_path_factory.mktemp("scratch")
    pairs = [f"{name.removesuffix('-')}={copy}" for name, copy in copies.items()]
    command = [sys.executable, "-m", "tests.workflows.growth.preloaded", str(tiny_package), str(folder), *pairs]
    path = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: (folder / f"{name}.txt").read_text() for name in copies}


@pytest.mark.timeout(900)  # the first one waits for all
@pytest.mark.parametrize("name", GROWTHS)
def test_one_more_reaches_every_interface_and_works(name: str, outputs: dict[str, str]) -> None:
    assert outputs[name].endswith("works\n"), outputs[name][-5000:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GROWTHS)
def test_without_the_edits_of_one_file_it_does_not(name: str, outputs: dict[str, str]) -> None:
    assert outputs[f"{name}-"].splitlines()[-1] != "works"
    assert "Traceback" in outputs[f"{name}-"]


@pytest.mark.parametrize("name", GROWTHS)
def test_it_takes_no_more_files_than_it_may_and_those_that_the_readme_says(name: str, copies: dict[str, Path]) -> None:
    growth, found = GROWTHS[name], touched(copies[name])
    assert set(found) == {edit.path for edit in growth.EDITS}
    assert len(found) <= growth.MOST_FILES
    made = {edit.path: str(PurePosixPath(edit.path).with_name("NAME.py")) for edit in growth.EDITS if not edit.anchor}
    (row,) = re.findall(rf"^\| {growth.NAME} \| (.*) \| (\d) \|$", README, re.MULTILINE)
    assert sorted(re.findall(r"`([^`]+)`", row[0])) == sorted(made.get(path, path) for path in found)
    assert int(row[1]) == len(found)


@pytest.mark.parametrize("name", GROWTHS)
def test_the_edits_are_in_the_style_of_the_code(name: str, copies: dict[str, Path]) -> None:
    ruff, found = [sys.executable, "-m", "ruff"], touched(copies[name])
    for command in ([*ruff, "check", "--quiet", *found], [*ruff, "format", "--diff", "--quiet", *found]):
        done = subprocess.run(command, cwd=copies[name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (below("pyproject.toml", "[tool.nothing]\n", "x"), "pyproject.toml has its anchor 0 times, wanted once"),
        (below("pyproject.toml", "import", "x"), "times, wanted once"),
        (new_file("workflows/errors.py", ""), "workflows/errors.py cannot be a new file"),
        (new_file("workflows/nowhere/a.py", ""), "workflows/nowhere/a.py cannot be a new file"),
    ],
)
def test_an_edit_that_has_lost_its_place_fails(edit: Edit, said: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        make([edit], copy_code(tmp_path / "copy"))


def test_every_kind_of_difference_is_counted(tmp_path: Path) -> None:
    copy = copy_code(tmp_path / "copy")
    assert touched(copy) == []
    (copy / "workflows" / "new.html").write_text("x")
    (copy / "workflows" / "errors.py").unlink()
    (copy / "pyproject.toml").write_text("x")
    assert touched(copy) == ["pyproject.toml", "workflows/errors.py", "workflows/new.html"]
