"""The pixels that a replica generates, and the PNG files that the HTTP front makes of them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from workflows.data.png import data_url, encode_png
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
        file = encode_png(pixels, "hwc", text=_provenance(generated.settings, seed))
        if response_format == "url":
            images.append(Image(url=data_url(file), seed=seed))
        else:
            images.append(Image(b64_json=base64.b64encode(file).decode(), seed=seed))
    return images


def _provenance(settings: GenerationSettings, seed: int) -> dict[str, str]:
    values = settings.model_dump(exclude={"without_effect"}, exclude_none=True) | {"seeds": [seed]}
    return {PROVENANCE_KEY: json.dumps(values)}
