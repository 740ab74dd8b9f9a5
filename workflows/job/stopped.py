"""Why a stage starts from nothing although a try of it was stopped before: that try had other settings.

A stage that starts notes in its folder all that its key holds. A later try with another key has another folder, so it
cannot go on from there. It compares its settings with those of every folder that no try has finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from workflows.runtime.artifact import MARKER
from workflows.storage.atomic import write_whole

NOTE: Final = ".settings.json"
_SHOWN: Final = 5


def note_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keeps what the key of a stage holds, in the folder of the stage."""
    write_whole(folder / NOTE, json.dumps(settings, indent=2))


def explain_start(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Says which settings differ from those of the unfinished try that is most alike.

    Args:
        folder: of the stage, which does not exist yet where the stage starts from nothing.
        settings: what the key holds, JSON-serializable.

    Returns:
        None where the stage goes on in its folder, or where there is no unfinished try.
    """
    if folder.exists():
        return None
    notes = [note for note in folder.parent.glob(f"*/{NOTE}") if not (note.parent / MARKER).exists()]
    changes = {note.parent: _changes(json.loads(note.read_text()), settings) for note in notes}
    if not changes:
        return None
    alike = min(changes, key=lambda place: len(changes[place]))
    shown, more = changes[alike][:_SHOWN], len(changes[alike]) - _SHOWN
    rest = f", and {more} more" if more > 0 else ""
    return f"does not go on from the unfinished try in {alike}: {', '.join(shown)}{rest}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name} was {old.get(name, 'absent')} and is {new.get(name, 'absent')}" for name in names]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)
