"""Pixels on their way out: what samplers hand to the ingress, and the PNG files made of it."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from workflows.serve.request.schema import GenerationSettings, Image

PROVENANCE_KEY: Final = "raverse"
"""The PNG text chunk that holds a picture's settings as JSON."""


@final
@dataclass(frozen=True)
class Generated:
    """An order carried out: `pixels` uint8 (n, h, w, c), one picture per seed of the settings."""

    settings: GenerationSettings
    pixels: NDArray[np.uint8]


def images_of(generated: Generated, response_format: str) -> list[Image]:
    """Encodes each picture in the form that the client asked for; each file carries its own provenance."""
    images = []
    for seed, pixels in zip(generated.settings.seeds, generated.pixels, strict=True):
        file = encode_png(pixels, generated.settings.model_copy(update={"seeds": [seed]}))
        text = base64.b64encode(file).decode()
        if response_format == "url":
            images.append(Image(url=f"data:image/png;base64,{text}", seed=seed))
        else:
            images.append(Image(b64_json=text, seed=seed))
    return images


def encode_png(pixels: NDArray[np.uint8], settings: GenerationSettings) -> bytes:
    """A PNG file of one picture (h, w, c), with one channel or three."""
    info = PngInfo()
    info.add_text(PROVENANCE_KEY, json.dumps(settings.model_dump(exclude={"without_effect"}, exclude_none=True)))
    file = io.BytesIO()
    Pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()
