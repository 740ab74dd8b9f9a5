"""A network for vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidShape
from diffusion_core.networks.attention import modulated, zeroed
from diffusion_core.networks.embedding import ConditionEmbedding, LevelEmbedding
from diffusion_core.networks.patches import check_shape
from diffusion_core.types import Data, Rows


@dataclass(frozen=True)
class MLPConfig:
    """The size of an `MLP`.

    Attributes:
        shape: of one row, `(c,)`.
        width: of the blocks.
        depth: number of blocks.
        token_dim: width of `Condition.tokens`, of which the mean is read; None: they are not read.
        pooled_dim: width of `Condition.pooled`; None: it is not read.
        num_classes: labels 0 .. num_classes - 1; None: they are not read.
        learned_variance: the output has 2c channels.
    """

    shape: tuple[int, ...]
    width: int = 128
    depth: int = 3
    token_dim: int | None = None
    pooled_dim: int | None = None
    num_classes: int | None = None
    learned_variance: bool = False


@final
class MLP(nn.Module):
    """Residual layers, modulated by level and condition; starts at zero output.

    Args:
        config: its size.

    Raises:
        InvalidShape: rows that are no vectors.
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        if len(config.shape) != 1:
            raise InvalidShape(f"found rows of shape {tuple(config.shape)}, an MLP is for vectors (c,): use a DiT")
        self.config, width = config, config.width
        channels = config.shape[0]
        self.embed = nn.Linear(channels, width)
        self.level = LevelEmbedding(width)
        self.condition = ConditionEmbedding(width, config.token_dim, config.pooled_dim, config.num_classes)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.depth))
        self.project = zeroed(nn.Linear(width, channels * (2 if config.learned_variance else 1)))

    def forward(self, x: Data, level: Rows, condition: Condition | None = None) -> Data:
        """Predicts x0, eps or v, as it was trained.

        Args:
            x: noisy vectors `(b, c)`.
            level: of each row, real-valued `(b,)`.
            condition: `b` rows; None: the null condition.

        Raises:
            InvalidShape: vectors of another length than `config.shape`.
            InvalidCondition: parts of another width, or a label that no class has.
        """
        check_shape(x, self.config.shape)
        asked = Condition.null(len(x), x.device) if condition is None else condition
        vector = self.level(level)
        vector = vector + self.condition.vector(asked, vector)
        text, mask = self.condition.text(asked, vector)
        if text is not None:
            weight = text.new_ones(text.shape[:2]) if mask is None else mask.to(text)
            vector = vector + (text * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        vector = nn.functional.silu(vector)
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden, vector)
        return cast(Tensor, self.project(nn.functional.layer_norm(hidden, hidden.shape[-1:])))


@final
class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 3 * width))
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b w"], vector: Float[Tensor, "b w"]) -> Float[Tensor, "b w"]:
        shift, scale, gate = self.modulation(vector).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.layers(modulated(x, shift, scale)))
