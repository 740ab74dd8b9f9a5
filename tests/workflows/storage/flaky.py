"""A file system of fsspec that is slow, fails, or lets nobody in, as `flaky://FOLDER`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from workflows.storage import copies


class FlakyFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files behind troubles that a test sets.

    Attributes:
        delay: seconds before a file opens.
        failing: every so many openings fail; 0: none.
        refused: whether all openings fail.
        opened: paths, as they were opened.
    """

    protocol: ClassVar[str] = "flaky"
    cachable: ClassVar[bool] = False
    delay: ClassVar[float] = 0.0
    failing: ClassVar[int] = 0
    refused: ClassVar[bool] = False
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("flaky://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        kind = type(self)
        kind.opened.append(path)
        time.sleep(kind.delay)
        if kind.refused:
            raise PermissionError(f"403 expired token for {path}")
        if kind.failing and len(kind.opened) % kind.failing == 0:
            raise ConnectionError(f"503 slow down: {path}")
        return super()._open(path, mode, **options)

    @classmethod
    def calm(cls) -> None:
        """Ends all troubles."""
        cls.delay, cls.failing, cls.refused = 0.0, 0, False
        cls.opened.clear()


@contextlib.contextmanager
def flaky_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No trouble at the beginning, short waits between attempts, no trouble afterwards."""
    monkeypatch.setattr(copies, "_LONGEST_WAIT", 0.01)
    FlakyFileSystem.calm()
    yield
    FlakyFileSystem.calm()


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
