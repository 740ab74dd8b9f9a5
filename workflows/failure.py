"""Turns any error into what the user is told: one sentence when it is known, None when it is a bug."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from diffusion_core.errors import RaverseError

_STORAGE_FAULTS: Final = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
}


def explain(error: BaseException) -> str | None:
    """The sentence to show for an error, found in it or in what caused it.

    Ray and Ray Train wrap what a worker raised, so the whole chain is searched; the outermost known error
    wins, since it knows most about what was being done.
    """
    for link in _chain(error):
        if isinstance(link, RaverseError):
            return str(link)
        if isinstance(link, OSError) and link.errno in _STORAGE_FAULTS:
            where = f" at {link.filename}" if link.filename else ""
            return (
                f"a file could not be written{where}, since {_STORAGE_FAULTS[link.errno]}: "
                f"mend that, or give --set storage.root=FOLDER"
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it wraps (Ray says `cause`, Ray Train `worker_failures`) or was raised from."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            failures = getattr(link, "worker_failures", None)
            waiting += [getattr(link, "cause", None), link.__cause__, link.__context__]
            waiting += list(failures.values()) if isinstance(failures, dict) else []
