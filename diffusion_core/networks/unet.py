"""The convolutional U-Net of the notes, for data of one to three axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidShape
from diffusion_core.networks.attention import Attention, zeroed
from diffusion_core.networks.convolution import convolution, num_groups
from diffusion_core.networks.embedding import ConditionEmbedding, LevelEmbedding
from diffusion_core.networks.patches import check_shape
from diffusion_core.types import Data, Rows


@dataclass(frozen=True)
class UNetConfig:
    """The size of a `UNet`.

    Attributes:
        shape: of one row, `(c, *axes)` with one to three axes; each is divided by two between resolutions.
        width: channels of the first resolution.
        multipliers: channels of each resolution, relative to `width`; as many resolutions as entries.
        num_blocks: residual blocks per resolution.
        attention: resolutions that attend, counted from 0, the finest; the middle always does.
        num_heads: attention heads.
        token_dim: width of `Condition.tokens`; None: they are not read.
        pooled_dim: width of `Condition.pooled`; None: it is not read.
        num_classes: labels 0 .. num_classes - 1; None: they are not read.
        learned_variance: the output has 2c channels.
    """

    shape: tuple[int, ...]
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    num_blocks: int = 1
    attention: tuple[int, ...] = (1, 2)
    num_heads: int = 4
    token_dim: int | None = None
    pooled_dim: int | None = None
    num_classes: int | None = None
    learned_variance: bool = False


@final
class UNet(nn.Module):
    """Residual convolutions down and up through the resolutions, joined by skips; starts at zero output.

    At some resolutions, pixels attend to themselves and to the text in one attention; level, pooled vector and label
    enter every residual block.

    Args:
        config: its size.

    Raises:
        InvalidShape: axes that cannot be halved that often, or heads that do not divide a width.

    References:
        Ronneberger et al. (2015); Ho et al. (2020), appendix B; Dhariwal & Nichol (2021), section 3.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, *axes = config.shape
        factor = 2 ** (len(config.multipliers) - 1)
        if not 1 <= len(axes) <= 3 or any(size % factor for size in axes):
            raise InvalidShape(f"found rows of shape {tuple(config.shape)}, wanted 1 to 3 axes, multiples of {factor}")
        self.config, self._rank = config, len(axes)
        self._width = 4 * config.width
        self.level = LevelEmbedding(self._width)
        self.condition = ConditionEmbedding(self._width, config.token_dim, config.pooled_dim, config.num_classes)
        self.first = convolution(self._rank, channels, config.width)
        down, skips = self._down()
        deepest = skips[-1]
        middle = [self._block(deepest, deepest, attends=True), self._block(deepest, deepest, attends=False)]
        self._num_down, self._num_middle = len(down), len(middle)
        self.blocks = nn.ModuleList([*down, *middle, *self._up(skips)])
        last = config.multipliers[0] * config.width
        self.norm = nn.GroupNorm(num_groups(last), last)
        self.project = zeroed(convolution(self._rank, last, channels * (2 if config.learned_variance else 1)))

    def forward(self, x: Data, level: Rows, condition: Condition | None = None) -> Data:
        """Predicts x0, eps or v, as it was trained.

        Args:
            x: noisy data `(b, *shape)`.
            level: of each row, real-valued `(b,)`.
            condition: `b` rows; None: the null condition.

        Raises:
            InvalidShape: data of another shape than `config.shape`.
            InvalidCondition: parts of another width, or a label that no class has.
        """
        check_shape(x, self.config.shape)
        asked = Condition.null(len(x), x.device) if condition is None else condition
        vector = self.level(level)
        vector = functional.silu(vector + self.condition.vector(asked, vector))
        text, mask = self.condition.text(asked, vector)
        hidden = self.first(x)
        skips = [hidden]
        for index, block in enumerate(self.blocks):
            if index >= self._num_down + self._num_middle and isinstance(block, ResidualBlock):
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = block(hidden, vector, text, mask)
            if index < self._num_down:
                skips.append(hidden)
        return cast(Tensor, self.project(functional.silu(self.norm(hidden))))

    def _down(self) -> tuple[list[nn.Module], list[int]]:
        """The blocks on the way down, and the channels of the first convolution's and of each block's output."""
        blocks: list[nn.Module] = []
        skips = [self.config.width]
        for resolution, multiplier in enumerate(self.config.multipliers):
            if resolution > 0:
                blocks.append(Resampling(self._rank, skips[-1], up=False))
                skips.append(skips[-1])
            for _ in range(self.config.num_blocks):
                channels = multiplier * self.config.width
                blocks.append(self._block(skips[-1], channels, attends=resolution in self.config.attention))
                skips.append(channels)
        return blocks, skips

    def _up(self, skips: list[int]) -> list[nn.Module]:
        """The blocks on the way up; each residual block takes one skip."""
        blocks: list[nn.Module] = []
        remaining, channels = list(skips), skips[-1]
        for resolution in reversed(range(len(self.config.multipliers))):
            for _ in range(self.config.num_blocks + 1):
                wanted = self.config.multipliers[resolution] * self.config.width
                attends = resolution in self.config.attention
                blocks.append(self._block(channels + remaining.pop(), wanted, attends=attends))
                channels = wanted
            if resolution > 0:
                blocks.append(Resampling(self._rank, channels, up=True))
        return blocks

    def _block(self, channels: int, wanted: int, *, attends: bool) -> ResidualBlock:
        config = self.config
        text_width = self._width if config.token_dim is not None else None
        heads = config.num_heads if attends else None
        return ResidualBlock(self._rank, channels, wanted, self._width, num_heads=heads, text_width=text_width)


@final
class ResidualBlock(nn.Module):
    """Two convolutions, modulated by the row's vector, and attention if wanted; starts as the identity, or 1x1.

    Args:
        rank: number of axes.
        channels: of the input.
        wanted: of the output.
        vector_width: of the row's vector.
        num_heads: attention heads; None: no attention.
        text_width: of the text that joins the attention; None: none does.
    """

    def __init__(
        self, rank: int, channels: int, wanted: int, vector_width: int, *, num_heads: int | None, text_width: int | None
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(num_groups(channels), channels)
        self.conv_in = convolution(rank, channels, wanted)
        self.modulation = nn.Linear(vector_width, 2 * wanted)
        self.norm_out = nn.GroupNorm(num_groups(wanted), wanted)
        self.conv_out = zeroed(convolution(rank, wanted, wanted))
        self.skip = nn.Identity() if channels == wanted else convolution(rank, channels, wanted, size=1)
        self.attention: Attention | None = None
        if num_heads is not None:
            self.norm_attention = nn.GroupNorm(num_groups(wanted), wanted)
            self.attention = Attention(wanted, num_heads, text_width=text_width)
            zeroed(self.attention.out)

    def forward(
        self,
        x: Float[Tensor, "b c ..."],
        vector: Float[Tensor, "b w"],
        text: Float[Tensor, "b m w"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b d ..."]:
        """One block: `vector` says how, `text` joins the attention."""
        hidden = self.norm_out(self.conv_in(functional.silu(self.norm_in(x))))
        shift, scale = (expand_channels(part, hidden) for part in self.modulation(vector).chunk(2, dim=1))
        x = self.skip(x) + self.conv_out(functional.silu(torch.addcmul(shift, hidden, 1.0 + scale)))
        if self.attention is None:
            return x
        pixels = self.norm_attention(x).flatten(2).transpose(1, 2)
        return cast(Tensor, x + self.attention(pixels, text, mask).transpose(1, 2).reshape(x.shape))


@final
class Resampling(nn.Module):
    """Halves, or doubles, every axis.

    Args:
        rank: number of axes.
        channels: of input and output.
        up: doubles.
    """

    def __init__(self, rank: int, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = convolution(rank, channels, channels, stride=1 if up else 2)

    def forward(
        self,
        x: Float[Tensor, "b c ..."],
        vector: Float[Tensor, "b w"],
        text: Float[Tensor, "b m w"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b c ..."]:
        """Takes what every block takes, and reads the data alone."""
        del vector, text, mask
        return cast(Tensor, self.conv(functional.interpolate(x, scale_factor=2.0) if self.up else x))


def expand_channels(part: Float[Tensor, "b c"], like: Tensor) -> Float[Tensor, "b c ..."]:
    """Views `(b, c)` as `(b, c, 1, ..., 1)`."""
    return part.reshape(*part.shape, *(1,) * (like.dim() - 2))
