"""Fixtures for all tests: one Ray session with two CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import jaxtyping
import pytest

from workflows.runtime.session import set_environment, start_ray, stop_ray

set_environment()
# For buckets of tests, in every process that is started from here.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
# Only tests of the core check its annotations: tests/core/conftest.py turns this on and off.
jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One embedded Ray for all tests that need one; its token goes to a temporary home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        start_ray(num_cpus=2)
        yield
        stop_ray()
