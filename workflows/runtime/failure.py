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
    """The error, then what it was raised from; where Ray wraps a worker's error, that error in its place."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        inner = _wrapped_by_ray(link)
        if not inner:
            yield link
        waiting += [*inner, link.__cause__, link.__context__]


def _wrapped_by_ray(error: BaseException) -> list[object]:
    """What a task's error calls `cause`, and Ray Train's error of several workers `worker_failures`."""
    failures = getattr(error, "worker_failures", None)
    inner = [getattr(error, "cause", None), *(failures.values() if isinstance(failures, dict) else ())]
    return [one for one in inner if isinstance(one, BaseException)]
