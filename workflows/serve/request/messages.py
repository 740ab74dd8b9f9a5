"""What the ingress asks of a sampler, and what it is told on the way to the picture.

A call carries everything that a replica needs, also what another replica had made of it: so the ingress may
send it again elsewhere, and the picture is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from workflows.serve.request.pictures import Generated
from workflows.serve.request.schema import GenerationSettings, PictureRequest

Track: TypeAlias = Literal["champion", "challenger"]
CHALLENGER: Final = "challenger"


@final
@dataclass(frozen=True)
class Source:
    """The picture that an edit starts from.

    Attributes:
        pixels: uint8 `(h, w, c)`.
        keep: bool `(h, w)`, True where the picture stays; None: no mask.
    """

    pixels: NDArray[np.uint8]
    keep: NDArray[np.bool_] | None


@final
@dataclass(frozen=True)
class KeptRow:
    """Where a row was: with its seed and settings, all that there is to know about it.

    Attributes:
        index: the next step.
        x: the row.
        x0: the last predicted x0, None before the first step.
    """

    index: int
    x: NDArray[np.float32]
    x0: NDArray[np.float32] | None


@final
@dataclass(frozen=True)
class Kept:
    """An unfinished order: enough to go on with it in another process."""

    settings: GenerationSettings
    label: int | None
    rows: tuple[KeptRow, ...]


@final
@dataclass(frozen=True)
class Preview:
    """The pictures as predicted so far; `step` steps are made."""

    pictures: Generated
    step: int


@final
@dataclass(frozen=True)
class Call:
    """A request on its way to a sampler.

    Attributes:
        request: what the client asked, with a seed.
        request_id: names it in logs and when its client leaves.
        source: what an edit starts from.
        track: which version to ask; None: by share of traffic.
        kept: what another replica left of it.
    """

    request: PictureRequest
    request_id: str
    source: Source | None = None
    track: Track | None = None
    kept: Kept | None = None


Event: TypeAlias = Kept | Preview | Generated
"""What a sampler tells: what to keep, previews, and at last the pictures."""
