"""Pictures in files: read at a model's size, written as PNG and GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from workflows.data.picture import decoded
from workflows.data.pixels import to_data
from workflows.data.png import image_of, pixels_of
from workflows.errors import InvalidData, InvalidRequest, StorageUnwritable

_SHOWN_SIDE: Final = 128
_FRAME_MILLISECONDS: Final = 60
_LAST_FRAME_MILLISECONDS: Final = 1500
_MOST_FRAMES: Final = 60


def read_picture(path: Path, shape: Sequence[int], param: str = "image") -> Tensor:
    """A picture in [-1, 1] of the model's shape (c, h, w); another size is resized.

    Raises:
        InvalidRequest: no picture there; names the parameter.
    """
    channels, height, width = shape
    return to_data(pixels_of(_open(path, param, "L" if channels == 1 else "RGB", (width, height))))


def read_mask(path: Path, shape: Sequence[int]) -> Tensor:
    """A mask (1, h, w): 1 where the file is white, 0 where it is black, nothing between.

    Raises:
        InvalidRequest: no picture there.
    """
    _, height, width = shape
    pixels = np.asarray(_open(path, "mask", "L", (width, height)))
    return torch.from_numpy(pixels >= 128).float()[None]


def write_png(path: Path, images: Tensor, zoom: int | None = None) -> None:
    """Writes pictures side by side.

    Args:
        path: of the file.
        images: (n, c, h, w) uint8.
        zoom: how often each pixel is repeated; None: until a side has 128.

    Raises:
        StorageUnwritable: the file cannot be written.
    """
    _save(path, _beside(images, zoom))


def write_gif(path: Path, frames: Tensor, zoom: int | None = None) -> None:
    """Writes steps (s, n, c, h, w) as an animation that stays at its end.

    Raises:
        StorageUnwritable: the file cannot be written.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).round().astype(int))
    pictures = [_beside(frames[index], zoom) for index in chosen]
    durations = [_FRAME_MILLISECONDS] * (len(pictures) - 1) + [_LAST_FRAME_MILLISECONDS]
    _save(path, pictures[0], save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _open(path: Path, param: str, mode: str, size: tuple[int, int]) -> Image.Image:
    try:
        with Image.open(path) as image:
            picture = decoded(image).convert(mode)
    except (OSError, InvalidData) as error:
        raise InvalidRequest(f"{path} cannot be read as a picture ({error}): give a PNG or JPEG file", param) from None
    return picture if picture.size == size else picture.resize(size, _filter(picture.size, size))


def _filter(have: tuple[int, int], want: tuple[int, int]) -> Image.Resampling:
    """The mean over whole blocks where it is exact, so that a zoomed picture is read as it was before."""
    whole = have[0] % want[0] == 0 and have[1] % want[1] == 0
    return Image.Resampling.BOX if whole else Image.Resampling.BICUBIC


def _beside(images: Tensor, zoom: int | None) -> Image.Image:
    n, channels, height, width = images.shape
    factor = max(1, -(-_SHOWN_SIDE // min(height, width))) if zoom is None else zoom
    row: NDArray[np.uint8] = images.permute(1, 2, 0, 3).reshape(channels, height, n * width).numpy()
    return image_of(row.repeat(factor, axis=1).repeat(factor, axis=2))


def _save(path: Path, picture: Image.Image, **options: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **options)
    except (OSError, ValueError) as error:
        raise StorageUnwritable(f"cannot write {path} ({error}): give --out FILE.png") from None
