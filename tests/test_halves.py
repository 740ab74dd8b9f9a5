"""Two processes of pytest are summed up, fail together and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import halves

PROGRAM = Path(halves.__file__)


def write(folder: Path, ray: str, other: str) -> Path:
    """A folder with one test in each half."""
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["ray", "slow", "gpu"]\n')
    (folder / "test_ray.py").write_text(f"import pytest, time\n\n@pytest.mark.ray\ndef test_ray():\n    {ray}\n")
    (folder / "test_other.py").write_text(f"import time\n\ndef test_other():\n    {other}\n")
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    ("other", "status", "told"), [("pass", 0, " 2 passed in "), ("assert not 1", 1, " 1 failed, 1 passed in ")]
)
def test_the_last_line_sums_both_halves_up(tmp_path: Path, other: str, status: int, told: str) -> None:
    process = start(write(tmp_path, "pass", other))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == status, out
    assert told in out.splitlines()[-1]
    assert {line.partition(" ")[0] for line in out.splitlines()[:-1]} == {"ray", "other"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_both(tmp_path: Path, number: signal.Signals) -> None:
    markers = [tmp_path / name for name in ("one", "two")]
    ray, other = (f"open({str(marker)!r}, 'w').close(); time.sleep(600)" for marker in markers)
    process = start(write(tmp_path, ray, other))
    deadline = time.monotonic() + 60
    while not all(marker.exists() for marker in markers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out.count("KeyboardInterrupt") >= 2
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_lines_that_are_no_total_count_nothing() -> None:
    line = "= 1 failed, 172 passed, 4 skipped, 13 deselected, 1 warning, 2 errors in 629.86s (0:10:29) ="
    assert halves.counts(line) == {
        "failed": 1, "passed": 172, "skipped": 4, "deselected": 13, "warnings": 1, "errors": 2,
    }  # fmt: skip
    assert halves.total_line(halves.counts(line), 3661.5).strip("= ") == (
        "1 failed, 172 passed, 4 skipped, 1 warnings, 2 errors in 3661.50s (1:01:01)"
    )
    assert not halves.counts("0.01s call tests/test_x.py: 3 passed in 2.0s of all")
    assert halves.counts("5 passed in 1.20s") == {"passed": 5}
