"""A log file that does not grow without end, although other processes write to it."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 16_000_000
_SECONDS: Final = 2.0


@contextlib.contextmanager
def bounded(file: Path, most_bytes: int = MOST_BYTES, seconds: float = _SECONDS) -> Iterator[None]:
    """Keeps a file that is open for appending within a size, for the length of the block.

    A full file is copied to `NAME.1`, in place of the one before, and is emptied. It cannot be renamed: its writers
    hold it open. A line that is written in between may be lost. On the disk there are about twice `most_bytes`.

    Args:
        file: the file; its writers must append (`O_APPEND`).
        most_bytes: its size.
        seconds: time between two looks.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            rotate(file, most_bytes)

    thread = threading.Thread(target=watch, name="log-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def rotate(file: Path, most_bytes: int = MOST_BYTES) -> bool:
    """Empties the file if it is full, and returns whether it was."""
    # A disk that is full must not stop the job for the sake of its log.
    with contextlib.suppress(OSError):
        if file.stat().st_size <= most_bytes:
            return False
        shutil.copyfile(file, file.with_name(f"{file.name}.1"))
        with file.open("r+b") as opened:
            opened.truncate(0)
        return True
    return False
