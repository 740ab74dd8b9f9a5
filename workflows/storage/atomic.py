"""Files and folders that are there whole or not at all: written under a temporary name, then renamed.

What holds, here and for everything that is built on it:

- The temporary name is in the folder of the final one, so the rename stays within one file system. Other processes see
  the old content or the whole new one, never a part. Only a folder that replaces another is absent for an instant.
- Writers of the same name do not disturb each other: each has a temporary name of its own, and the last rename counts.
- After an exception the temporary file is removed and the old content is untouched.
- A process that is killed leaves its temporary file `.NAME.<random>.partial`: `remove_partial` removes it.
- Nothing is forced to the disk (fsync). This protects from processes that end, not from machines that lose power.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

PARTIAL: Final = ".partial"
"""Ending of a file that is being written."""


@final
class PartialFile:
    """A file that is being written; a context, at whose end nothing is left of it unless it was committed.

    Args:
        final: its name when it is whole; its folder is made.

    Attributes:
        path: where it is written.
    """

    def __init__(self, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        self.path = final.with_name(f".{final.name}.{uuid.uuid4().hex}{PARTIAL}")
        self._final = final

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def commit(self, name: str | None = None) -> Path:
        """Renames it.

        Args:
            name: another final name in the same folder, for a file that bears the hash of its content.

        Returns:
            Where it is now.
        """
        target = self._final if name is None else self._final.with_name(name)
        return self.path.replace(target)

    def discard(self) -> None:
        """Removes what was not committed."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name; what the block wrote there becomes the file at `path`, unless the block raises."""
    with PartialFile(path) as partial:
        yield partial.path
        partial.commit()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file (UTF-8)."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder, which becomes the folder at `path`, or replaces it, unless the block raises.

    A process that is killed leaves a hidden folder `.NAME.<random>` beside it. Killed between the two renames of a
    replacement it leaves the old folder there, and none at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        partial = Path(temporary) / "new"
        partial.mkdir()
        yield partial
        if path.exists():
            path.rename(Path(temporary) / "replaced")
        partial.rename(path)


def remove_partial(folder: Path) -> None:
    """Removes the files, in this folder and below, that a killed process had not finished writing.

    No process may be writing there.
    """
    for path in folder.rglob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)
