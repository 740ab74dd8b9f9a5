"""Pictures of every kind, good and broken."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.workflows.data.samples_own import picture
from workflows.data.picture import PictureShape, prepare
from workflows.errors import InvalidData

SHAPE = PictureShape(8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def color_of(data: bytes) -> list[int]:
    pixels, _ = prepare(data, SHAPE)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    return pixels[:, 4, 4].tolist()


def bomb(side: int = 20_000) -> bytes:
    """A PNG that says it has side x side pixels, and is a few bytes long."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_cmyk_palette_gray_and_transparency_become_rgb() -> None:
    assert color_of(encoded(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG", quality=100))[0] > 200
    assert color_of(encoded(Image.new("RGB", (9, 9), (0, 0, 255)).convert("P"))) == [0, 0, 255]
    assert color_of(encoded(Image.new("L", (9, 9), 77))) == [77, 77, 77]
    assert color_of(encoded(Image.new("1", (9, 9), 1))) == [255, 255, 255]
    assert color_of(encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0)))) == [255, 255, 255]
    assert color_of(encoded(Image.new("LA", (9, 9), (0, 255)))) == [0, 0, 0]


def test_sixteen_bits_keep_their_upper_eight() -> None:
    ramp = np.full((9, 9), 0x8040, np.uint16)
    assert color_of(encoded(Image.fromarray(ramp))) == [0x80] * 3
    assert color_of(encoded(Image.fromarray(ramp), "TIFF")) == [0x80] * 3


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    pixels, found = prepare(data, SHAPE)
    assert found.frames == 3
    assert pixels[:, 4, 4].tolist() == [255, 0, 0]


def test_a_gray_shape_has_one_channel() -> None:
    pixels, found = prepare(picture(0), PictureShape(8, channels=1))
    assert pixels.shape == (1, 8, 8)
    assert (found.width, found.height, found.mode, found.format) == (20, 16, "RGB", "PNG")


def test_the_middle_is_cut_out_of_a_wide_picture() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    pixels, _ = prepare(encoded(Image.fromarray(wide)), SHAPE)
    assert pixels[:, :, 1:-1].min() > 150


def test_exif_rotation_is_applied() -> None:
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, _ = prepare(encoded(Image.fromarray(half), "JPEG", exif=exif, quality=100), SHAPE)
    assert pixels[0, 0].min() > 200, "the left half is now the upper"
    assert pixels[0, -1].max() < 50


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_jpeg_is_refused(kept: float) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    prepare(data, SHAPE)
    with pytest.raises(InvalidData, match="cannot be decoded"):
        prepare(data[: int(kept * len(data))], SHAPE)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidData, match=r"20000|decompression bomb"):
        prepare(bomb(), SHAPE)
    with pytest.raises(InvalidData, match=r"100 x 100 pixels are more than 5000: .*max_pixels"):
        prepare(encoded(Image.new("L", (100, 100))), PictureShape(8, max_pixels=5000))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidData, match=r"empty|cannot be decoded|is text"):
        prepare(data, SHAPE)


def test_floating_point_is_refused() -> None:
    with pytest.raises(InvalidData, match="floating-point"):
        prepare(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), SHAPE)
