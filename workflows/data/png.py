"""Pixels as Pillow images and as PNG files, and back; an image has one channel (gray) or three (RGB)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Layout: TypeAlias = Literal["chw", "hwc"]
"""The order of the axes of one image's pixels: channels first, as the core has them, or last."""


def encode_png(
    pixels: NDArray[np.uint8], layout: Layout = "chw", *, text: Mapping[str, str] | None = None, compression: int = 6
) -> bytes:
    """A PNG file of one image.

    Args:
        pixels: uint8 `(c, h, w)`, or `(h, w, c)` where the layout says so; c is 1 or 3.
        layout: order of the axes.
        text: text chunks of the file, by keyword.
        compression: of zlib, 0 to 9; the pixels are the same at each.
    """
    return png_of(image_of(pixels, layout), text=text, compression=compression)


def png_of(image: Image.Image, *, text: Mapping[str, str] | None = None, compression: int = 6) -> bytes:
    """A PNG file of a Pillow image; arguments as of `encode_png`."""
    info = PngInfo()
    for keyword, value in (text or {}).items():
        info.add_text(keyword, value)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info, compress_level=compression)
    return file.getvalue()


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """`(c, h, w)` uint8 pixels of an encoded image of any format: one channel when it is gray, else three."""
    with Image.open(io.BytesIO(data)) as image:
        return pixels_of(image if image.mode == "L" else image.convert("RGB"))


def image_of(pixels: NDArray[np.uint8], layout: Layout = "chw") -> Image.Image:
    """Pixels, with arguments as of `encode_png`, as a Pillow image."""
    last = pixels.transpose(1, 2, 0) if layout == "chw" else pixels
    return Image.fromarray(np.ascontiguousarray(last[..., 0] if last.shape[-1] == 1 else last))


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """A Pillow image of mode L or RGB as uint8 pixels `(c, h, w)`, in memory of their own."""
    pixels: NDArray[Any] = np.array(image, np.uint8)
    return pixels[None] if image.mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def data_url(png: bytes) -> str:
    """A PNG file as a `data:` URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
