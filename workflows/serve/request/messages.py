"""The messages between the HTTP front and the sampler deployment.

A `SamplerRequest` carries everything that a replica needs, also the checkpoint of a replica that was lost. So the
front may send it again to another replica, and the pictures are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from diffusion_core.errors import RaverseError
from workflows.serve.request.resolve import ResolvedRequest
from workflows.serve.request.schema import PictureRequest


@final
@dataclass(frozen=True)
class InitImage:
    """The picture that an edit starts from.

    Attributes:
        pixels: uint8 `(h, w, c)`.
        keep: bool `(h, w)`, True where the picture stays; None without a mask.
    """

    pixels: NDArray[np.uint8]
    keep: NDArray[np.bool_] | None


@final
@dataclass(frozen=True)
class RowCheckpoint:
    """The state of a row; with the settings and its seed it determines the rest of the row.

    Attributes:
        index: the next step.
        x: the row, of the model's shape.
        x0: the last predicted x0; None before the first step.
    """

    index: int
    x: NDArray[np.float32]
    x0: NDArray[np.float32] | None


@final
@dataclass(frozen=True)
class Checkpoint:
    """The state of an unfinished request, from which another process can continue it.

    Attributes:
        resolved: the request, resolved by the version that began it.
        rows: one per picture.
    """

    resolved: ResolvedRequest
    rows: tuple[RowCheckpoint, ...]


@final
@dataclass(frozen=True)
class Refusal:
    """The end of a request that cannot be served; as a message, since Ray prints a traceback for every exception.

    Attributes:
        error: the reason.
    """

    error: RaverseError


@final
@dataclass(frozen=True)
class SamplerRequest:
    """One request of a client, as the front sends it to the sampler deployment.

    Attributes:
        body: the fields of the client's request, with a seed.
        request_id: the name of the request in logs and in its cancellation.
        init_image: the picture that an edit starts from.
        alias: the alias whose version to use; empty: the served one; None leaves the choice to the share of traffic.
        checkpoint: the state in which another replica was lost.
    """

    body: PictureRequest
    request_id: str
    init_image: InitImage | None = None
    alias: str | None = None
    checkpoint: Checkpoint | None = None
