"""What a network is told beside its data: the level, and a row's condition.

A row sees its tokens, pooled vector and label only where `condition.present`; a learned null stands for each
part that is hidden or missing. A pooled vector of zeros, label -1 and a mask without a True are missing parts:
that is how `Condition.cat` fills rows that lack them.
"""

from __future__ import annotations

import math
from typing import cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.condition import NO_LABEL, Condition
from diffusion_core.errors import InvalidCondition
from diffusion_core.types import RowMask, Rows


def sinusoidal(position: Float[Tensor, "n"], width: int, longest: float = 10_000.0) -> Float[Tensor, "n w"]:
    """`[cos(f_i p), sin(f_i p)]` with `f_i` falling geometrically from 1 to `1 / longest`.

    Args:
        position: any real numbers, `(n,)`.
        width: of the result; an odd last column is zero.
        longest: slowest wavelength over 2 pi.
    """
    half = width // 2
    exponent = torch.arange(half, device=position.device, dtype=position.dtype) / max(half, 1)
    angle = position[:, None] * torch.exp(-math.log(longest) * exponent)
    return functional.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))


@final
class LevelEmbedding(nn.Module):
    """The level as a vector: sinusoids, then two layers.

    Args:
        width: of the vector.
        num_frequencies: sines and cosines, together.
    """

    def __init__(self, width: int, num_frequencies: int = 256) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.layers = nn.Sequential(nn.Linear(num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level: Rows) -> Float[Tensor, "b w"]:
        """`(b,)`, at least single precision (a level of 999 is no bfloat16), to `(b, width)`."""
        first = cast(nn.Linear, self.layers[0])
        return cast(Tensor, self.layers(sinusoidal(level, self.num_frequencies).to(first.weight.dtype)))


@final
class ConditionEmbedding(nn.Module):
    """A row's condition as one vector and, for attention, as text.

    Args:
        width: of both.
        token_dim: width of the tokens; None: the network reads none.
        pooled_dim: width of the pooled vector; None: the network reads none.
        num_classes: labels 0 .. num_classes - 1; None: the network reads none.
    """

    def __init__(self, width: int, token_dim: int | None, pooled_dim: int | None, num_classes: int | None) -> None:
        super().__init__()
        self.width, self.token_dim, self.pooled_dim, self.num_classes = width, token_dim, pooled_dim, num_classes
        if token_dim is not None:
            self.tokens = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, width))
            self.null_token = nn.Parameter(torch.randn(width) * 0.02)
        if pooled_dim is not None:
            self.pooled = nn.Sequential(nn.LayerNorm(pooled_dim), nn.Linear(pooled_dim, width))
            self.null_pooled = nn.Parameter(torch.randn(width) * 0.02)
        if num_classes is not None:
            self.label = nn.Embedding(num_classes + 1, width)
            nn.init.normal_(self.label.weight, std=0.02)

    def vector(self, condition: Condition, like: Tensor) -> Float[Tensor, "b w"]:
        """Pooled vector plus label, each or its null, `(b, width)`, of the type and device of `like`."""
        vector = like.new_zeros(condition.num_rows, self.width)
        if self.pooled_dim is not None:
            vector = vector + self._pooled(condition, like)
        if self.num_classes is not None:
            vector = vector + self.label(self._visible_label(condition, like))
        return vector

    def text(
        self, condition: Condition, like: Tensor
    ) -> tuple[Float[Tensor, "b m w"] | None, Bool[Tensor, "b m"] | None]:
        """The null token and the text, with the mask that lets a row see one or the other."""
        if self.token_dim is None:
            return None, None
        null = self.null_token.expand(condition.num_rows, 1, -1)
        if condition.tokens is None:
            return null, None
        tokens, mask = self._visible_tokens(condition, like)
        projected = self.tokens(tokens)
        return torch.cat([null.to(projected), projected], dim=1), torch.cat([~mask.any(1, keepdim=True), mask], dim=1)

    def _pooled(self, condition: Condition, like: Tensor) -> Tensor:
        if condition.pooled is None:
            return self.null_pooled.expand(condition.num_rows, -1)
        _check_width("pooled", condition.pooled, self.pooled_dim)
        given = condition.pooled.to(like)
        visible = visible_pooled(condition, like)[:, None]
        return torch.where(visible, self.pooled(torch.where(visible, given, 0.0)), self.null_pooled)

    def _visible_tokens(self, condition: Condition, like: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden positions become zeros: a mask alone would let a NaN there through."""
        tokens = cast(Tensor, condition.tokens)
        _check_width("tokens", tokens, self.token_dim)
        mask = condition.present.to(like.device)[:, None].expand(tokens.shape[:2])
        if condition.mask is not None:
            mask = mask & condition.mask.to(like.device)
        return torch.where(mask[..., None], tokens.to(like), 0.0), mask

    def _visible_label(self, condition: Condition, like: Tensor) -> Int[Tensor, "b"]:
        null = cast(int, self.num_classes)
        if condition.label is None:
            return torch.full((condition.num_rows,), null, device=like.device)
        check_labels(condition.label, null)
        label = condition.label.to(like.device)
        return torch.where(condition.present.to(like.device) & (label != NO_LABEL), label, null)


def visible_pooled(condition: Condition, like: Tensor) -> RowMask:
    """Rows whose pooled vector is there and may be seen."""
    there = (cast(Tensor, condition.pooled).to(like.device) != 0).any(dim=1)
    return there & condition.present.to(like.device)


def check_labels(label: Int[Tensor, "b"], num_classes: int) -> None:
    """Refuses labels that no class has. On a GPU the check would wait for the device: the caller's business there.

    Raises:
        InvalidCondition: names the first such row.
    """
    if label.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = (label < NO_LABEL) | (label >= num_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise InvalidCondition(
            f"row {row} has label {int(label[row])}, wanted 0..{num_classes - 1}, or {NO_LABEL} for none"
        )


def _check_width(name: str, part: Tensor, width: int | None) -> None:
    if part.shape[-1] != width:
        raise InvalidCondition(f"found {name} of width {part.shape[-1]}, this network reads {width}: use its own CLIP")
