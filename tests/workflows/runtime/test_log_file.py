"""A log that others write to stays within its size, and keeps its latest lines."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from workflows.runtime.log_file import bounded, rotate

WRITER = "import sys\nfor number in range(20000): print(f'line {number:06}', flush=True)"


def test_a_file_that_another_process_appends_to_stays_within_its_size(tmp_path: Path) -> None:
    file = tmp_path / "ray.log"
    with file.open("a") as opened, bounded(file, most_bytes=50_000, seconds=0.005):
        writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=opened)
        seen = []
        while writer.poll() is None:
            seen.append(file.stat().st_size)
            time.sleep(0.005)
    whole = 20000 * len("line 000000\n")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < whole
    assert b"\0" not in file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ray.log", "ray.log.1"]
    assert b"line 019999\n" in file.read_bytes() + (tmp_path / "ray.log.1").read_bytes()


def test_a_file_that_is_not_full_or_not_there_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "ray.log"
    assert not rotate(file, 10)
    file.write_text("0123456789")
    assert not rotate(file, 10)
    assert file.read_text() == "0123456789"
    file.write_text("0123456789a")
    assert rotate(file, 10)
    assert (file.read_text(), (tmp_path / "ray.log.1").read_text()) == ("", "0123456789a")
