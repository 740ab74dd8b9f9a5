"""What a stage shows while it works: a bar on a terminal, plain lines elsewhere.

A stage calls `start` once per loop, `advance` as it goes, and `log` for what is worth a line. It never
prints. `Progress.silent()` is for tests and for callers that want no output.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO, final

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_SECONDS_BETWEEN_LINES: Final = 10.0
_SHOWN_AS_SECONDS, _SHOWN_AS_MINUTES = 100.0, 100.0


@final
class Progress:
    """Shows the work of one stage at a time.

    Args:
        console: where to show it; None shows nothing.
        log_file: every line is also appended here, whatever the console is.
    """

    def __init__(self, console: Console | None, log_file: TextIO | None = None) -> None:
        self._console = console
        self._log_file = log_file
        self._stage = ""
        self._total = 0
        self._unit = ""
        self._last_line = 0.0
        self._first: tuple[float, int] | None = None
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    @classmethod
    def silent(cls) -> Progress:
        """A progress that shows nothing."""
        return cls(None)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names the lines of a stage, and takes its bar away at the end."""
        self._stage = name
        try:
            yield
        finally:
            self._remove_bar()
            self._stage = ""

    def start(self, total: int, unit: str) -> None:
        """Begins a loop of `total` units, such as `start(1000, "steps")`; a loop before it is over."""
        self._remove_bar()
        self._total, self._unit, self._last_line = total, unit, time.monotonic()
        self._first = None
        if self._console is not None and self._console.is_terminal:
            self._bars = _make_bars(self._console)
            self._task = self._bars.add_task(self._stage, total=total, unit=unit, figures="")
            self._bars.start()

    def advance(self, done: int, **figures: float) -> None:
        """Says how far the loop is.

        Args:
            done: units finished since `start`; absolute, not an increment.
            figures: what to show beside it, such as `loss=0.12`.
        """
        text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, figures=text)
        now = time.monotonic()
        self._first = self._first or (now, done)
        if done >= self._total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = f"{done}/{self._total} {self._unit} {text}".rstrip() + self._left(now, done)
            self._line(line, to_console=self._bars is None)

    def _left(self, now: float, done: int) -> str:
        """The time that is left, at the rate since the first call, which may come late in a loop that goes on."""
        begun, first = self._first or (now, done)
        if first >= done or done >= self._total:
            return ""
        return f", {duration((now - begun) / (done - first) * (self._total - done))} left"

    def log(self, text: str) -> None:
        """Shows one line."""
        self._line(text, to_console=True)

    def _line(self, text: str, *, to_console: bool) -> None:
        line = f"{self._stage}: {text}" if self._stage else text
        if self._log_file is not None:
            self._log_file.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            self._log_file.flush()
        if to_console and self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _remove_bar(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None


def duration(seconds: float) -> str:
    """`45 s`, `3.2 minutes`, `5.1 hours`: as exact as an estimate may be."""
    if seconds < _SHOWN_AS_SECONDS:
        return f"{seconds:.0f} s"
    minutes = seconds / 60.0
    return f"{minutes:.1f} minutes" if minutes < _SHOWN_AS_MINUTES else f"{minutes / 60.0:.1f} hours"


def _make_bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]} {task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
