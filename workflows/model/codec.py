"""What stands between a picture and the data that a model denoises: nothing, or an autoencoder."""

from __future__ import annotations

from typing import Protocol, final

from torch import Tensor

from diffusion_core.types import Data


class Codec(Protocol):
    """Pictures in [-1, 1] `(b, c, h, w)` to data and back, row by row."""

    def encode(self, pictures: Tensor) -> Data:
        """The data of pictures."""
        ...

    def decode(self, x0: Data) -> Tensor:
        """The pictures of data, in about [-1, 1]."""
        ...

    def preview(self, x0: Data) -> Tensor:
        """About what `decode` says, at a cost that does not hold up the steps."""
        ...

    def mask(self, kept: Tensor) -> Tensor:
        """Which data is known where pixels are: 1 where all of its pixels are, `(1, h, w)` each."""
        ...


@final
class Pixels:
    """The data is the picture."""

    def encode(self, pictures: Tensor) -> Data:
        """See `Codec.encode`."""
        return pictures

    def decode(self, x0: Data) -> Tensor:
        """See `Codec.decode`."""
        return x0

    def preview(self, x0: Data) -> Tensor:
        """See `Codec.preview`."""
        return x0

    def mask(self, kept: Tensor) -> Tensor:
        """See `Codec.mask`."""
        return kept
