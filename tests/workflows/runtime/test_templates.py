from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from workflows.runtime.templates import template

ROOT = Path(__file__).parents[3]
VALUES = {
    "path": "/data/<b>mine</b>",
    "usable": True,
    "verdict": "good",
    "tables": {},
    "unusable": "",
    "examples": [],
    "mixture": "",
    "refused": [],
    "changed": [],
    "thumbnails": [],
    "training": [],
    "next": "",
}


def test_values_are_escaped() -> None:
    page = template("workflows.data", "check.html").render(VALUES)
    assert "<h1>/data/&lt;b&gt;mine&lt;/b&gt;</h1>" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    "missing", ["path", "verdict", "tables", "mixture", "refused", "changed", "thumbnails", "next"]
)
def test_a_missing_value_is_an_error(missing: str) -> None:
    """Negative control of the render above: by itself, Jinja2 would leave a gap."""
    values = {name: value for name, value in VALUES.items() if name != missing}
    with pytest.raises(UndefinedError, match=missing):
        template("workflows.data", "check.html").render(values)


def test_templates_travel_with_the_package() -> None:
    """setuptools takes files that are no Python only where it is told to."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["workflows"]
    templates = set((ROOT / "workflows").rglob("*.html"))
    assert len(templates) >= 3
    assert templates == {path for pattern in declared for path in (ROOT / "workflows").glob(pattern)} & templates
