"""Processes that outlive the command which started them, and a file that says exactly which ones they are.

A process is known by its number *and* the time when it began: numbers are given out again, and another's process must
never be ended. One that is gone, or whose number now is another's, is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, final

import psutil

from workflows.errors import StageFailed
from workflows.storage.atomic import write_whole

_GENTLE_SECONDS: Final = 30.0
_SAME_START: Final = 2.0  # the system counts from a boot time that an adjusted clock moves
_EVERY: Final = 0.2
_LAST_LINES: Final = 5


@final
@dataclass(frozen=True)
class Started:
    """A process that was started.

    Attributes:
        name: of what it does.
        pid: its number, which is also that of its session.
        began: when, in seconds since 1970, as the system says.
        log: file of its output.
    """

    name: str
    pid: int
    began: float
    log: str

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.began) < _SAME_START
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@final
class Processes:
    """Those of one folder: `processes.json` lists them, `NAME.log` has what each says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "processes.json"

    def listed(self) -> list[Started]:
        """All that were started and not stopped yet, in order; some may have ended by themselves."""
        if not self._file.is_file():
            return []
        return [Started(**fields) for fields in json.loads(self._file.read_text())]

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], user: int | None = None
    ) -> Started:
        """Starts one in a session of its own, and writes it down at once."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=user,
            )
        started = Started(name, process.pid, psutil.Process(process.pid).create_time(), str(log))
        self._write([*self.listed(), started])
        return started

    def stop_all(self) -> list[str]:
        """Ends them, the last one first, and whatever they started; returns the names of those that still ran."""
        ended = []
        for one in reversed(self.listed()):
            process = one.find()
            if process is not None:
                _end(process)
                ended.append(one.name)
            self._write([other for other in self.listed() if other != one])
        self._file.unlink(missing_ok=True)
        return ended

    def _write(self, started: Sequence[Started]) -> None:
        write_whole(self._file, json.dumps([asdict(one) for one in started], indent=1))


def wait_until(ready: Callable[[], bool], started: Started, seconds: float) -> None:
    """Waits until a process does its work.

    Raises:
        StageFailed: it ended, or takes longer than that; tells what it said last.
    """
    give_up = time.monotonic() + seconds
    while not ready():
        if started.find() is None:
            raise StageFailed(f"{started.name} has ended: {_last_lines(Path(started.log))} ({started.log})")
        if time.monotonic() > give_up:
            raise StageFailed(f"{started.name} is not ready after {seconds:.0f} s: look at {started.log}")
        time.sleep(_EVERY)


def _end(process: psutil.Process) -> None:
    """Asks the process to end; kills what is left of its family after a while."""
    family = [process, *_family(process)]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    _, alive = psutil.wait_procs([process], timeout=_GENTLE_SECONDS)
    _, alive = psutil.wait_procs(family, timeout=_EVERY)
    for one in alive:
        # psutil compares the start time before it kills, so a number that was given out again is safe.
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(alive, timeout=_GENTLE_SECONDS)


def _family(process: psutil.Process) -> Iterator[psutil.Process]:
    """Its children, their children, and others of its session whose parents are gone."""
    children = process.children(recursive=True)
    yield from children
    known = {process.pid, *(one.pid for one in children)}
    for one in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if one.pid not in known and os.getsid(one.pid) == process.pid:
                yield one


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:]
    return " / ".join(lines) or "it said nothing"
