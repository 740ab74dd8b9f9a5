"""A diffusion transformer for data of any number of axes, conditional on text and class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, final

from torch import Tensor, nn

from diffusion_core.condition import Condition
from diffusion_core.networks.attention import TransformerBlock, modulated, zeroed
from diffusion_core.networks.embedding import ConditionEmbedding, LevelEmbedding
from diffusion_core.networks.patches import PatchGrid, Stem, patch_embedding
from diffusion_core.types import Data, Rows


@dataclass(frozen=True)
class DiTConfig:
    """The size of a `DiT`.

    Attributes:
        shape: of one row, `(c, *axes)`: an image `(c, h, w)`, a video `(c, frames, h, w)`, a sequence `(c, n)`.
        patch: length of a patch along each axis, or one for all; it divides the axis.
        width: of the blocks.
        depth: number of blocks.
        num_heads: attention heads; they divide the width.
        mlp_ratio: hidden width of the feed-forward layers, relative to `width`.
        token_dim: width of `Condition.tokens`; None: they are not read.
        pooled_dim: width of `Condition.pooled`; None: it is not read.
        num_classes: labels 0 .. num_classes - 1; None: they are not read.
        learned_variance: the output has 2c channels.
        stem: what makes a vector of a patch.
    """

    shape: tuple[int, ...]
    patch: int | tuple[int, ...] = 4
    width: int = 192
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    token_dim: int | None = None
    pooled_dim: int | None = None
    num_classes: int | None = None
    learned_variance: bool = False
    stem: Stem = "linear"


@final
class DiT(nn.Module):
    """Patches attend to themselves and to the text; level, pooled vector and label modulate every block.

    Starts at zero output. Row i of the output depends on row i of the arguments alone.

    Args:
        config: its size.

    Raises:
        InvalidShape: the patch does not divide the shape, or the heads the width.

    References:
        Peebles & Xie, Scalable Diffusion Models with Transformers (2023).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.grid = PatchGrid(config.shape, config.patch)
        self.patches = patch_embedding(self.grid, width, config.stem)
        self.level = LevelEmbedding(width)
        self.condition = ConditionEmbedding(width, config.token_dim, config.pooled_dim, config.num_classes)
        with_text = config.token_dim is not None
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio, with_text=with_text)
            for _ in range(config.depth)
        )
        channels = config.shape[0] * (2 if config.learned_variance else 1)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.project = zeroed(nn.Linear(width, channels * self.grid.volume))

    def forward(self, x: Data, level: Rows, condition: Condition | None = None) -> Data:
        """Predicts x0, eps or v, as it was trained.

        Args:
            x: noisy data `(b, *shape)`.
            level: of each row, real-valued `(b,)`.
            condition: `b` rows; None: the null condition.

        Raises:
            InvalidShape: data of another shape than `config.shape`.
            InvalidCondition: tokens or pooled vectors of another width, or a label that no class has.
        """
        elements = self.patches(x)
        asked = Condition.null(len(x), x.device) if condition is None else condition
        vector = self.level(level)
        vector = nn.functional.silu(vector + self.condition.vector(asked, vector))
        text, mask = self.condition.text(asked, vector)
        for block in self.blocks:
            elements = block(elements, vector, text, mask)
        shift, scale = self.modulation(vector)[:, None].chunk(2, dim=-1)
        return self.grid.join(cast(Tensor, self.project(modulated(elements, shift, scale))))
