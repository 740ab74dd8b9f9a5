"""Pictures with a text of the same name beside them: `.txt` or `.caption` (lines), or `.json`; a class in `.cls`.

A picture without a text in a folder such as kohya's `10_concept` has the concept as its caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import (
    CAPTION_NAMES,
    LABEL_NAMES,
    TEXT_SUFFIXES,
    Columns,
    Record,
    canonical,
    captions_of,
    class_of,
    have_digits,
    is_concept,
    is_image,
    is_stray,
    keys_found,
    label_of,
    parsed,
    pick,
    read_text,
    thinned,
)
from workflows.errors import InvalidData

_FILES_AT_ONCE: Final = 512
_BESIDE: Final = (*TEXT_SUFFIXES, ".json", ".cls")


def sees(location: Location, entries: list[Entry]) -> int:  # noqa: ARG001 -- a source's signature
    """How many pictures have a text beside them, or a folder such as `10_concept` around them."""
    beside = _texts(entries)
    return sum(
        is_image(entry.path) and (is_concept(entry.path) or bool(_beside(entry.path, beside))) for entry in entries
    )


def _texts(entries: list[Entry]) -> dict[str, list[str]]:
    """Texts by path without their end, which may be that of a picture: about 200 bytes for each."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        place = PurePosixPath(entry.path)
        if place.suffix.lower() in _BESIDE:
            found.setdefault(canonical(str(place.with_suffix(""))), []).append(entry.path)
    return found


def _beside(image: str, texts: dict[str, list[str]]) -> list[str]:
    """The caption's file, if there is one, and then that of the class."""
    stem = canonical(str(PurePosixPath(image).with_suffix("")))
    files = [*texts.get(stem, ()), *texts.get(canonical(image), ())]
    by_end = {PurePosixPath(file).suffix.lower(): file for file in reversed(files)}
    return [by_end[end] for end in _BESIDE if end in by_end and end != ".cls"]


def _class_file(image: str, texts: dict[str, list[str]]) -> str | None:
    stem = canonical(str(PurePosixPath(image).with_suffix("")))
    return next((file for file in texts.get(stem, ()) if file.lower().endswith(".cls")), None)


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:  # noqa: ARG001
    """Stretches of pictures in order of paths, then the texts that lost theirs.

    Raises:
        InvalidData: there is no picture.
    """
    entries = location.entries()
    images = [entry.path for entry in entries if is_image(entry.path)]
    if not images:
        raise InvalidData(f"no images in {location.url}: set data.path to a folder of them")
    texts = _texts(entries)
    for start in range(0, len(images), _FILES_AT_ONCE):
        part = images[start : start + _FILES_AT_ONCE]
        yield {"files": [[path, next(iter(_beside(path, texts)), None), _class_file(path, texts)] for path in part]}
    alone = list(_alone(images, texts))
    for start in range(0, len(alone), _FILES_AT_ONCE):
        yield {"alone": alone[start : start + _FILES_AT_ONCE]}


def _alone(images: list[str], texts: dict[str, list[str]]) -> Iterator[str]:
    stems = {canonical(str(PurePosixPath(path).with_suffix(""))) for path in images}
    whole = {canonical(path) for path in images}
    digits = have_digits(stems)
    for stem, files in texts.items():
        if stem not in stems and stem not in whole and not is_stray(stem, digits):
            yield from (file for file in files if file.lower().endswith(TEXT_SUFFIXES))


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:
    """The records of a stretch of pictures."""
    alone = thinned(piece.get("alone") or (), piece)
    yield from (Record(path, fault="there is no image of this name") for path in alone)
    for path, text, label in thinned(piece.get("files") or (), piece):
        try:
            yield _record(location, path, text, label, columns)
        except FileNotFoundError:
            yield Record(path, fault="the file does not exist")
        except (OSError, ValueError) as error:
            yield Record(path, fault=str(error))


def _record(location: Location, path: str, text: str | None, label: str | None, columns: Columns) -> Record:
    captions, notes, named = _captions(location, path, text, columns)
    if label is not None:
        named = label_of(read_text(location.read(label))[0].strip())
    elif named is None and is_concept(path):
        named = class_of(path)
    if text is None and not captions:
        return Record(path, fault="no .txt of this name beside it")
    return Record(path, location.read(path), captions, named, notes=notes)


def _captions(
    location: Location, path: str, text: str | None, columns: Columns
) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """Captions, how their text had to be read, and the class that the text names."""
    if text is None:
        name = class_of(path) if is_concept(path) else None
        return ((), (), None) if name is None else ((columns.template.format(label=name),), (), name)
    data = location.read(text)
    if not text.lower().endswith(".json"):
        found, notes = read_text(data)
        return tuple(found.splitlines()), notes, None
    values, notes = parsed(data)
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004 -- one kind for all faults of data
            f"its .json holds {type(values).__name__}, wanted an object"
        )
    captions = captions_of(pick(values, columns.caption, CAPTION_NAMES))
    if not captions:
        raise ValueError(f"no caption in {PurePosixPath(text).name} (keys: {keys_found(values)})")
    return captions, notes, label_of(pick(values, columns.label, LABEL_NAMES))
