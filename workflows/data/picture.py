"""Any encoded picture as pixels of one shape, or a sentence that says why not."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from workflows.data.colors import as_srgb
from workflows.data.content import described, missing_decoder, without_addresses
from workflows.data.png import pixels_of, png_of
from workflows.errors import InvalidData


@final
@dataclass(frozen=True)
class PictureShape:
    """What pictures are made to.

    Attributes:
        size: pixels of each side.
        channels: 1 (gray) or 3 (RGB).
        max_pixels: larger pictures are refused before they are decoded.
        background: colour below transparent parts, as Pillow names it.
    """

    size: int
    channels: int = 3
    max_pixels: int = 64_000_000
    background: str = "white"


@final
@dataclass(frozen=True)
class Found:
    """What a picture was before it was converted; `frames` above 1 is an animation, of which the first counts.

    Attributes:
        width: of the file's picture, in pixels.
        height: likewise.
        mode: as Pillow names it.
        format: of the file.
        frames: of an animation.
        notes: what was changed.
    """

    width: int
    height: int
    mode: str
    format: str
    frames: int
    notes: tuple[str, ...] = ()


def prepare(data: bytes, shape: PictureShape) -> tuple[NDArray[np.uint8], Found]:
    """Decodes a picture, converts it to sRGB, resizes its shorter side and cuts out the middle.

    Transparent parts take the background, 16 bits become 8, EXIF rotation is applied, an animation gives its first
    frame.

    Args:
        data: of a file.
        shape: wanted.

    Returns:
        (c, h, w) pixels, and what the file held.

    Raises:
        InvalidData: it cannot be decoded, or has too many pixels.
    """
    if not data:
        raise InvalidData("the image is empty: 0 bytes")
    _load_plugins()
    try:
        with _opened(data) as image:
            found = (*image.size, image.mode, image.format or "?", int(getattr(image, "n_frames", 1)))
            _check_size(image, shape)
            if image.format == "JPEG":
                image.draft(None, (2 * shape.size, 2 * shape.size))
            image.load()
            pixels, notes = _pixels(ImageOps.exif_transpose(image), shape)
            return pixels, Found(*found, notes)
    except InvalidData:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on broken files, and each is a broken file
        raise InvalidData(_reason(data, error)) from None


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The picture; Pillow's own limit of pixels gives way to `max_pixels`."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=1)
def _load_plugins() -> None:
    """Lets Pillow read what installed packages add to it."""
    with contextlib.suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        import_module("pillow_jxl")


def _reason(data: bytes, error: Exception) -> str:
    if kind := missing_decoder(data):
        return f"the image is {kind}"
    if kind := described(data):
        return f"the image is {kind}"
    text = without_addresses(str(error))[:200]
    return f"the image cannot be decoded ({type(error).__name__}: {text})"


def _check_size(image: Image.Image, shape: PictureShape) -> None:
    width, height = image.size
    if width * height > shape.max_pixels:
        raise InvalidData(
            f"{width} x {height} pixels are more than {shape.max_pixels}: shrink it, or raise data.max_pixels"
        )


def decoded(image: Image.Image) -> Image.Image:
    """A loaded picture as mode L or RGB: upright, in 8 bits of sRGB, and white where it was transparent.

    Raises:
        InvalidData: its pixels are floating-point numbers.
    """
    return as_srgb(ImageOps.exif_transpose(image), PictureShape.background)[0]


def _pixels(image: Image.Image, shape: PictureShape) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    flat, notes = as_srgb(image, shape.background)
    fitted = ImageOps.fit(flat, (shape.size, shape.size), Image.Resampling.LANCZOS)
    return pixels_of(fitted.convert("L" if shape.channels == 1 else "RGB")), notes


def plain_view(data: bytes, side: int) -> bytes | None:
    """A file's picture as a program shows it that knows nothing of profiles, depth and transparency, as a PNG file.

    Args:
        data: of a file.
        side: pixels of the longer side.

    Returns:
        None: nothing can be decoded.
    """
    try:
        with _opened(data) as image:
            if image.width * image.height > PictureShape.max_pixels:
                return None
            image.draft(None, (2 * side, 2 * side))
            image.load()
            shown: Image.Image = image
            if image.mode.startswith("I"):
                shown = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            shown = shown.convert("RGB")
            shown.thumbnail((side, side))
            return png_of(shown)
    except Exception:  # noqa: BLE001 - decoders raise anything on broken files, which have no view
        return None
