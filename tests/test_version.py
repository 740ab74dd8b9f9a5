"""The version stands in `workflows/__init__.py`; what cannot be made from it there is compared with it here."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from workflows import __version__

ROOT = Path(__file__).parents[1]
TAGS = re.compile(r"\braverse(?:-gpu)?(?::|, newTag: )([0-9][\w.]*)-(cpu|cuda)\b")


def test_the_package_takes_it_from_there() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in declared["project"] and declared["project"]["dynamic"] == ["version"]
    assert declared["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "workflows.__version__"}
    assert metadata.version("raverse") == __version__, "installed at another version: make install"


def test_newest_changelog_entry_is_this_version() -> None:
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


@pytest.mark.parametrize("file", ["README.md", "image/Dockerfile", "kubernetes/base/kustomization.yaml"])
def test_images_bear_it(file: str) -> None:
    """Both images, each at this version; negative control: another version is seen."""
    text = (ROOT / "deploy" / file).read_text()
    assert set(TAGS.findall(text)) == {(__version__, "cpu"), (__version__, "cuda")}
    assert ("9.9.9", "cpu") in TAGS.findall(text.replace(f"{__version__}-cpu", "9.9.9-cpu"))


def test_kustomize_reads_the_same_tags() -> None:
    images = yaml.safe_load((ROOT / "deploy/kubernetes/base/kustomization.yaml").read_text())["images"]
    assert {image["newTag"] for image in images} == {f"{__version__}-cpu", f"{__version__}-cuda"}


def test_no_other_file_holds_it() -> None:
    """A new place would be forgotten at the next release: take `workflows.__version__`, or compare it above."""
    known = {"workflows/__init__.py", "CHANGELOG.md", "deploy/README.md", "deploy/image/Dockerfile"}
    known |= {"deploy/kubernetes/base/kustomization.yaml"}
    literal = re.compile(rf"(?<![\w.]){re.escape(__version__)}(?![\w.])")
    files = [
        path
        for pattern in ("*.md", "*.toml", "Makefile", "deploy/**/*", "workflows/**/*", "diffusion_core/**/*")
        for path in ROOT.glob(pattern)
        if path.is_file() and path.suffix != ".pyc"
    ]
    found = {str(path.relative_to(ROOT)) for path in files if literal.search(path.read_text(errors="ignore"))}
    assert found == known
