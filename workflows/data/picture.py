"""Any encoded picture as pixels of one shape, or a sentence that says why not."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from workflows.data.png import pixels_of
from workflows.errors import InvalidData


@final
@dataclass(frozen=True)
class PictureShape:
    """What pictures are made to.

    Attributes:
        size: pixels of each side.
        channels: 1 (gray) or 3 (RGB).
        max_pixels: larger pictures are refused before they are decoded.
    """

    size: int
    channels: int = 3
    max_pixels: int = 64_000_000


@final
@dataclass(frozen=True)
class Found:
    """What a picture was before it was converted; `frames` above 1 is an animation, of which the first counts."""

    width: int
    height: int
    mode: str
    format: str
    frames: int


def prepare(data: bytes, shape: PictureShape) -> tuple[NDArray[np.uint8], Found]:
    """Decodes a picture, resizes its shorter side and cuts out the middle.

    Transparent parts become white, 16 bits become 8, EXIF rotation is applied, an animation gives its first frame.

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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                found = Found(*image.size, image.mode, image.format or "?", int(getattr(image, "n_frames", 1)))
                _check_size(image, shape)
                if image.format == "JPEG":
                    image.draft(None, (2 * shape.size, 2 * shape.size))
                image.load()
                return _pixels(decoded(image), shape), found
    except InvalidData:
        raise
    except Image.DecompressionBombError:
        raise InvalidData(f"more than twice {Image.MAX_IMAGE_PIXELS} pixels: a decompression bomb?") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on broken files, and each is a broken file
        text = " ".join(str(error).split())[:200]
        raise InvalidData(f"the image cannot be decoded ({type(error).__name__}: {text})") from None


def _check_size(image: Image.Image, shape: PictureShape) -> None:
    width, height = image.size
    if width * height > shape.max_pixels:
        raise InvalidData(
            f"{width} x {height} pixels are more than {shape.max_pixels}: shrink it, or raise data.max_pixels"
        )


def decoded(image: Image.Image) -> Image.Image:
    """A loaded picture as mode L or RGB: upright, of 8 bits, and white where it was transparent.

    Raises:
        InvalidData: its pixels are floating-point numbers.
    """
    return _eight_bits(ImageOps.exif_transpose(image))


def _pixels(image: Image.Image, shape: PictureShape) -> NDArray[np.uint8]:
    fitted = ImageOps.fit(image, (shape.size, shape.size), Image.Resampling.LANCZOS)
    return pixels_of(fitted.convert("L" if shape.channels == 1 else "RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise InvalidData("floating-point pixels: convert the picture to 8 or 16 bits")
    if image.has_transparency_data:
        colored = image.convert("RGBA")
        white = Image.new("RGBA", colored.size, "white")
        return Image.alpha_composite(white, colored).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
