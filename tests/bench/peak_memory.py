"""How much memory a piece of work takes, over all its processes."""

from __future__ import annotations

import threading

import psutil


class PeakMemory:
    """The largest sum of the proportional set sizes of this process and all below it, in MiB."""

    def __enter__(self) -> PeakMemory:
        self.mib, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.1):
            self.mib = max(self.mib, sum(map(_pss, [me, *me.children(recursive=True)])) / 2**20)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
