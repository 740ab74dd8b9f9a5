"""Edits of the code as data: which lines are put where, in a copy of the repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """One edit of one file.

    Attributes:
        path: of the file, from the root of the repository.
        anchor: a text that stands once in the file; None: the file is new.
        text: stands in its place afterwards, or is the new file.
    """

    path: str
    anchor: str | None
    text: str


def new_file(path: str, text: str) -> Edit:
    """Makes a file."""
    return Edit(path, None, text)


def below(path: str, anchor: str, text: str) -> Edit:
    """Puts a text behind an anchor."""
    return Edit(path, anchor, anchor + text)


def above(path: str, anchor: str, text: str) -> Edit:
    """Puts a text before an anchor."""
    return Edit(path, anchor, text + anchor)


def instead(path: str, anchor: str, text: str) -> Edit:
    """Puts a text in the place of an anchor."""
    return Edit(path, anchor, text)


def make(edits: Sequence[Edit], root: Path) -> None:
    """Makes edits in a copy of the repository, one after another.

    Raises:
        AssertionError: an anchor does not stand once in its file, or a new file is there already.
    """
    for edit in edits:
        file = root / edit.path
        if edit.anchor is None:
            assert file.parent.is_dir() and not file.exists(), f"{edit.path} cannot be a new file"
            file.write_text(edit.text)
            continue
        text = file.read_text()
        found = text.count(edit.anchor)
        assert found == 1, f"{edit.path} has its anchor {found} times, wanted once: {edit.anchor!r}"
        file.write_text(text.replace(edit.anchor, edit.text))
