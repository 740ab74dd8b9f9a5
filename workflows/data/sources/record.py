"""One captioned image as a source gives it, before anything is decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, final

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTION_NAMES: Final = ("caption", "captions", "text", "texts", "prompt", "TEXT")
IMAGE_NAMES: Final = ("image", "img", "image_bytes", "bytes", "jpg", "png")
LABEL_NAMES: Final = ("label", "class", "cls")


@final
@dataclass(frozen=True)
class Columns:
    """Names of a source's columns (or keys of its JSON); None: the usual ones are tried.

    Attributes:
        image: image bytes, or file names.
        caption: one caption, or a list of them.
        label: the class.
        values: columns of numbers, for vectors.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    values: tuple[str, ...] | None = None


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
    """

    name: str
    image: bytes = b""
    captions: tuple[str, ...] = ()
    label: str | None = None
    fault: str | None = None


def is_image(path: str) -> bool:
    """Whether a path ends like a picture."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


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


def decoded(data: bytes) -> str:
    """Text of a file; bytes that are no UTF-8 become lone surrogates, which the import replaces and tells of."""
    return data.decode("utf-8-sig", "surrogateescape")


def parsed(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def label_of(value: Any) -> str | None:
    """A label as text; an empty one is none."""
    return None if value is None or value == "" else str(value)


def pick(values: dict[str, Any], wanted: str | None, usual: Sequence[str]) -> Any:
    """The value under the wanted key, or under the first of the usual ones that is there; None: there is none."""
    names = usual if wanted is None else (wanted,)
    return next((values[name] for name in names if name in values), None)
