"""The pixels that a replica generates, and the PNG files that the HTTP front makes of them."""

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
    """The pictures of a request after some of its steps: previews, and after the last step the result.

    Attributes:
        settings: everything that determines the pictures.
        pixels: uint8 `(n, h, w, c)`, one picture per seed of the settings.
        step: steps that every row has made, counted as in `settings.num_inference_steps`.
    """

    settings: GenerationSettings
    pixels: NDArray[np.uint8]
    step: int

    @property
    def finished(self) -> bool:
        """Whether these are the result and no previews."""
        return self.step == self.settings.num_inference_steps


def images_of(generated: Generated, response_format: str) -> list[Image]:
    """Encodes the pictures as PNG files in JSON; each file carries its own provenance.

    Args:
        generated: n pictures.
        response_format: `b64_json`, or `url` for a `data:` URL.
    """
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
    """Encodes one picture `(h, w, c)` of one channel or three as a PNG file that holds its settings."""
    info = PngInfo()
    info.add_text(PROVENANCE_KEY, json.dumps(settings.model_dump(exclude={"without_effect"}, exclude_none=True)))
    file = io.BytesIO()
    Pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()
