"""For all tests: one Ray session, how two processes share the tests, and the last lines about what was skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Tensors of tests are tiny, and two processes share two cores: more threads only wait. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import jaxtyping
import pytest

from tests.tools import IN_CI, missing_tools
from workflows.runtime.session import set_environment, start_ray, stop_ray

set_environment()
# For buckets of tests, in every process that is started from here.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
# Only tests of the core check its annotations: tests/core/conftest.py turns this on and off.
jaxtyping.config.update("jaxtyping_disable", True)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that use the session's Ray get the marker `ray`, by which the two halves are told apart."""
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last lines: tests that were skipped because a tool is missing, and how to get it."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not IN_CI:
        reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminal.stats.get("skipped", ())]
        for line in missing_tools(reasons):
            terminal.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One embedded Ray for all tests that need one; its token goes to a temporary home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray(num_cpus=2)
        yield
        stop_ray()
