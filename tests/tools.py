"""Programs and files that some tests need and `pip install` does not bring.

Where one is missing, its tests are skipped and the last line of the run says so; where the variable CI is `true`, they
fail, so that no change lands without them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import TypeVar

import pytest

Found = TypeVar("Found")
ROOT = Path(__file__).parents[1]
IN_CI = os.environ.get("CI") == "true"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def need(found: Found | None, what: str, remedy: str, *, in_ci: bool = True) -> Found:
    """What was found; without it the test that asks is skipped, or fails in CI.

    Args:
        found: None where it is missing.
        what: its name.
        remedy: how to get it.
        in_ci: whether CI has it.
    """
    if found is not None:
        return found
    told = f"{what} is missing: {remedy}"
    if in_ci and IN_CI:
        pytest.fail(told, pytrace=False)
    pytest.skip(told)


def browser() -> str:
    """The path of Chromium."""
    return need(next(filter(None, map(shutil.which, BROWSERS)), None), "Chromium", "apt-get install chromium")


def kuberay_schemas() -> Path:
    """The folder of KubeRay's custom resource definitions."""
    places = [os.environ.get("KUBERAY_CRD_DIR"), ROOT.parent / "shared" / "kuberay-crds"]
    found = next((Path(place) for place in places if place and Path(place).is_dir()), None)
    remedy = "set KUBERAY_CRD_DIR to helm-chart/kuberay-operator/crds of KubeRay 1.7"
    return need(found, "the folder of KubeRay's schemas", remedy)


def missing_tools(reasons: list[str]) -> list[str]:
    """One line for each missing tool, with the number of tests that were skipped for it."""
    counts = Counter(reason for reason in reasons if re.search(r" is missing: ", reason))
    return [f"{number} tests were skipped: {reason}" for reason, number in sorted(counts.items())]
