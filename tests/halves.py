"""Runs the tests that are neither slow nor for a GPU in two processes at once: those on Ray, and all others.

Usage: python tests/halves.py [OPTION OF PYTEST ...]

Each line is printed as it comes, behind the name of its half. The last line sums both up as pytest does; below it stand
the tests that were skipped because a tool is missing. The exit status is 1 unless both halves passed. Ctrl-C ends both.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

HALVES = {"ray": "ray and not slow and not gpu", "other": "not ray and not slow and not gpu"}
COUNTED = ("failed", "passed", "skipped", "xfailed", "xpassed", "warnings", "errors")
TOTAL = re.compile(r"^=* ?(\d+ \w+(?:, \d+ \w+)*) in \d+\.\d+s\b")


def counts(line: str) -> Counter[str]:
    """The numbers of pytest's last line; none if it is another line."""
    found = TOTAL.match(line)
    pairs = (part.split() for part in found[1].split(", ")) if found else ()
    singular = {"warning": "warnings", "error": "errors"}
    return Counter({singular.get(word, word): int(number) for number, word in pairs})


def total_line(total: Counter[str], seconds: float) -> str:
    """Pytest's last line for the sums; what one half left to the other is not among them."""
    parts = ", ".join(f"{total[word]} {word}" for word in COUNTED if total[word])
    clock = f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
    return f" {parts or 'no tests ran'} in {seconds:.2f}s ({clock}) ".center(80, "=")


def show(name: str, lines: Iterable[str], kept: list[str]) -> None:
    """Prints the lines of a half, and keeps those that are summed up."""
    for line in lines:
        # One write for each line: two threads print.
        print(f"{name:5} | {line.rstrip()}\n", end="", flush=True)
        if TOTAL.match(line) or " were skipped: " in line:
            kept.append(line.rstrip())


def start(chosen: str, options: list[str]) -> subprocess.Popen[str]:
    """Pytest on one half, in a process group of its own: Ctrl-C reaches it once, by way of this process."""
    command = [sys.executable, "-u", "-m", "pytest", "-m", chosen, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)


def interrupt(*_: object) -> NoReturn:
    """What `kill` does is what Ctrl-C does."""
    raise KeyboardInterrupt


def run(options: list[str]) -> int:
    """The exit status of both halves."""
    began, kept = time.monotonic(), list[str]()
    halves = {name: start(chosen, options) for name, chosen in HALVES.items()}
    readers = [threading.Thread(target=show, args=(name, half.stdout, kept)) for name, half in halves.items()]
    for reader in readers:
        reader.start()
    try:
        statuses = [half.wait() for half in halves.values()]
    except KeyboardInterrupt:
        for half in halves.values():
            half.send_signal(signal.SIGINT)
        statuses = [half.wait() for half in halves.values()]
    for reader in readers:
        reader.join()
    print(total_line(sum(map(counts, kept), Counter()), time.monotonic() - began))
    print(*(line for line in kept if " were skipped: " in line), sep="\n", end="", flush=True)
    return int(any(statuses))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(run(sys.argv[1:]))
