"""One captioned image as a source gives it, before anything is decoded."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar, final

T = TypeVar("T")

IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".png", ".webp", ".jpe", ".jfif", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".apng"),
    *(".avifs", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".jpc", ".mpo", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    *(".qoi", ".ico", ".dds", ".psd", ".heic", ".heif", ".hif", ".jxl"),
)
"""Ends of the names of pictures; of two pictures with one name, the one whose end comes first is taken."""
TEXT_SUFFIXES: Final = (".txt", ".caption")
CAPTION_NAMES: Final = (
    *("caption", "captions", "text", "texts", "prompt", "prompts", "TEXT", "Caption", "description", "descriptions"),
    *("sentence", "sentences", "alt_text", "alt", "title"),
)
IMAGE_NAMES: Final = ("image", "img", "image_bytes", "bytes", "jpg", "png", "webp", "jpeg", "picture", "photo")
LABEL_NAMES: Final = ("label", "class", "cls", "class_name", "category")
_NO_RECORDS: Final = re.compile(
    r"(readme|licen[cs]e|copying|changelog|notice|citation|requirements|prompts?|sample_prompts?|classes|labels|"
    r"metadata|notes?|index|todo|contents?|info|stats|log)(\W.*|_.*)?",
    re.IGNORECASE,
)
_CLASS_FOLDER: Final = re.compile(r"(\d+)_(.+)")
_MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
WINDOWS: Final = "text that is no UTF-8 read as Windows-1252"


@final
@dataclass(frozen=True)
class Columns:
    """Names of a source's columns (or keys of its JSON); None: the usual ones are tried.

    Attributes:
        image: image bytes, or file names.
        caption: one caption, or a list of them.
        label: the class.
        values: columns of numbers, for vectors.
        template: the caption of a picture whose folder names it, with `{label}` for that name.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    values: tuple[str, ...] | None = None
    template: str = "{label}"


@final
@dataclass(frozen=True)
class Record:
    """One captioned image, or why there is none.

    Attributes:
        name: where it comes from, such as `train/7.jpg` or `part.parquet:31`.
        image: encoded picture; of vectors, little-endian float32 numbers.
        captions: as found.
        label: its class, as text.
        fault: why it cannot be used; None: it may be.
        notes: how the source had to guess, such as the encoding of a text.
    """

    name: str
    image: bytes = b""
    captions: tuple[str, ...] = ()
    label: str | None = None
    fault: str | None = None
    notes: tuple[str, ...] = ()


def is_image(path: str) -> bool:
    """Whether a path ends like a picture."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: str) -> bool:
    """Whether a file is the operating system's own: its name or a folder starts with a dot, or is `__MACOSX`."""
    parts = path.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def is_stray(stem: str, pictures_have_digits: bool) -> bool:
    """Whether a text without a picture is about the set, such as `README.txt`, and no record that lost its picture."""
    name = PurePosixPath(stem).name
    if _NO_RECORDS.fullmatch(name):
        return True
    return pictures_have_digits and not any(char.isdigit() for char in name)


def have_digits(stems: Iterable[str]) -> bool:
    """Whether every picture's name has a digit."""
    return all(any(char.isdigit() for char in PurePosixPath(stem).name) for stem in stems)


def class_of(path: str) -> str | None:
    """The name that a picture's folder gives it, without the number of kohya's `10_concept`; None: it is in none."""
    folder = PurePosixPath(path).parent.name
    if not folder:
        return None
    counted = _CLASS_FOLDER.fullmatch(folder)
    return counted[2] if counted else folder


def is_concept(path: str) -> bool:
    """Whether a picture lies in a folder such as kohya's `10_concept`."""
    return _CLASS_FOLDER.fullmatch(PurePosixPath(path).parent.name) is not None


def canonical(path: str) -> str:
    """A path with its accents composed, as all but some file systems write them."""
    return unicodedata.normalize("NFC", path)


def captions_of(value: Any) -> tuple[str, ...]:
    """Captions of a cell: a text, a list of texts, or nothing.

    Raises:
        ValueError: something else.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(item is None or isinstance(item, str) for item in value):
        return tuple(item for item in value if item is not None)
    raise ValueError(f"the caption is {type(value).__name__}, wanted a text or a list of texts")


def read_text(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Text of a file, and how it had to be read: by its byte-order mark, else as UTF-8, else as Windows-1252."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            text = data[len(mark) :].decode(encoding, "replace")
            return text, ("what is no Unicode text replaced",) if "\ufffd" in text else ()
    try:
        return data.decode(), ()
    except UnicodeDecodeError:
        return _windows(data), (WINDOWS,)


def _windows(data: bytes) -> str:
    """Windows-1252; the five bytes that it does not know are those of Latin-1."""
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in data)


def parsed(data: bytes) -> tuple[Any, tuple[str, ...]]:
    """The value of a JSON text, and how the text had to be read.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    text, notes = read_text(data)
    try:
        return json.loads(text), notes
    except RecursionError:
        raise ValueError("nested too deeply") from None


def label_of(value: Any) -> str | None:
    """A label as text; an empty one is none."""
    return None if value is None or value == "" else str(value)


def pick(values: Any, wanted: str | None, usual: Sequence[str]) -> Any:
    """The value under the wanted key, or the first of the usual ones that is filled; None: there is none."""
    names = usual if wanted is None else (wanted,)
    if not isinstance(values, Mapping):
        return None
    found = [values[name] for name in names if name in values]
    return next((value for value in found if value not in (None, "", [])), found[0] if found else None)


def thinned(items: Iterable[T], piece: Mapping[str, Any]) -> Iterator[T]:
    """Every so-many-th record of a piece, as `raverse data check` asks for a sample; all: where none is asked for."""
    every = int(piece.get("every", 1))
    return (item for number, item in enumerate(items) if number % every == 0)


def keys_found(values: Mapping[str, Any]) -> str:
    """The keys of a record, for a message."""
    return ", ".join(map(str, values))[:200] or "none"
