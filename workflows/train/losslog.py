"""`losses.csv`: written by the first worker, followed by the driver while training runs.

A file in shared storage survives every process, and a restart cuts it back to the step that it goes on from.
"""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

from workflows.runtime.progress import Progress

LOSSES_FILE: Final = "losses.csv"
_POLL_SECONDS: Final = 0.3
_SHOWN: Final = ("loss", "samples_per_second")


@final
class LossLog:
    """Appends rows; the columns are those of the first row.

    Args:
        path: of the CSV file.
        step: rows after this step are cut off, since their steps will be made again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows = [row for row in read_losses(path) if row["step"] <= step]
        self._before = rows[-1]["seconds"] if rows else 0.0
        self._started = time.perf_counter()
        path.unlink(missing_ok=True)
        if rows:
            self._write(rows, header=True)

    def append(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a row: the step, seconds of training so far (all tries), and figures."""
        seconds = self._before + time.perf_counter() - self._started
        self._write([{"step": step, "seconds": seconds, **figures}], header=not self._path.exists())

    def _write(self, rows: list[dict[str, float]], *, header: bool) -> None:
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if header:
                writer.writeheader()
            writer.writerows([{name: f"{value:.6g}" for name, value in row.items()} for row in rows])


def read_losses(path: Path) -> list[dict[str, float]]:
    """All complete rows, without a last line that is still being written; none if there is no file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


@contextmanager
def following(path: Path, progress: Progress, pictures: Path) -> Iterator[None]:
    """Shows new rows, and names new pictures in a folder, for the length of the block."""
    ended, shown, seen = threading.Event(), 0.0, set(pictures.glob("*.png"))

    def show() -> None:
        nonlocal shown
        rows = read_losses(path)
        if rows and rows[-1]["step"] != shown:
            shown = rows[-1]["step"]
            progress.advance(int(shown), **{name: rows[-1][name] for name in _SHOWN})
        for picture in sorted(set(pictures.glob("*.png")) - seen):
            seen.add(picture)
            progress.log(f"pictures so far: {picture}")

    def follow() -> None:
        while not ended.wait(_POLL_SECONDS):
            show()

    thread = threading.Thread(target=follow, name="losses", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        show()
