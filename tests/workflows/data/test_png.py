"""PNG files of pixels: what is written is what is read, with the axes in either order."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from workflows.data.png import data_url, decode_png, encode_png, image_of, pixels_of, png_of


def noise(channels: int) -> np.ndarray:
    """Pixels `(c, 5, 7)` that no exchange of axes leaves as they are."""
    return np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_in_either_layout(channels: int) -> None:
    pixels = noise(channels)
    files = [encode_png(pixels), encode_png(pixels.transpose(1, 2, 0), "hwc"), png_of(image_of(pixels))]
    assert files[0] == files[1] == files[2]
    np.testing.assert_array_equal(decode_png(files[0]), pixels)
    np.testing.assert_array_equal(pixels_of(image_of(pixels)), pixels)
    image = Image.open(io.BytesIO(files[0]))
    assert (image.format, image.mode, image.size) == ("PNG", {1: "L", 3: "RGB"}[channels], (7, 5))


def test_a_file_carries_text_and_any_compression_gives_the_same_pixels() -> None:
    pixels, text = noise(3), {"raverse": '{"seed": 1}', "two": "words"}
    file = encode_png(pixels, text=text, compression=1)
    assert Image.open(io.BytesIO(file)).text == text  # type: ignore[attr-defined]
    np.testing.assert_array_equal(decode_png(file), decode_png(encode_png(pixels, compression=9)))
    assert Image.open(io.BytesIO(encode_png(pixels))).text == {}  # type: ignore[attr-defined]


def test_pixels_of_an_image_are_its_own() -> None:
    image = image_of(noise(1))
    pixels = pixels_of(image)
    pixels[:] = 0
    assert pixels_of(image).any()


def test_a_palette_picture_becomes_three_channels() -> None:
    colors = np.random.default_rng(0).integers(0, 2, (4, 6, 3), dtype=np.uint8) * 255
    palette = Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decode_png(png_of(palette)), colors.transpose(2, 0, 1))


def test_a_data_url_holds_the_file() -> None:
    kind, _, text = data_url(b"bytes").partition(",")
    assert (kind, base64.b64decode(text)) == ("data:image/png;base64", b"bytes")
