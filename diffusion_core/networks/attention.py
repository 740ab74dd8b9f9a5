"""Attention over a row's own elements and its text, and the adaLN-zero transformer block."""

from __future__ import annotations

from typing import TypeVar, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.errors import InvalidShape

Layer = TypeVar("Layer", bound=nn.Module)


@final
class Attention(nn.Module):
    """Elements attend to themselves and to text, in one softmax over both.

    Args:
        width: of the elements, a multiple of `num_heads`.
        num_heads: attention heads.
        text_width: of the text that joins as extra keys and values; None: none does.

    Raises:
        InvalidShape: the heads do not divide the width.
    """

    def __init__(self, width: int, num_heads: int, *, text_width: int | None) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise InvalidShape(f"found width {width} with {num_heads} heads: the heads must divide the width")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.text_kv = None if text_width is None else nn.Linear(text_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        text: Float[Tensor, "b m t"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """Mixes each row's elements.

        Args:
            x: `(b, n, width)`.
            text: `(b, m, text_width)`.
            mask: which of the m positions may be attended to; None: all.
        """
        q, k, v = self._heads(self.qkv(x), 3)
        visible = None
        if self.text_kv is not None and text is not None:
            text_k, text_v = self._heads(self.text_kv(text), 2)
            k, v = torch.cat([k, text_k], dim=2), torch.cat([v, text_v], dim=2)
            if mask is not None:
                visible = functional.pad(mask, (x.shape[1], 0), value=True)[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor, num_parts: int) -> tuple[Tensor, ...]:
        """`(b, n, parts * width)` to that many `(b, heads, n, width / heads)`."""
        parts = x.reshape(*x.shape[:2], num_parts, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return parts.unbind()


@final
class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, scaled, shifted and gated by the row's vector; starts as the identity.

    Args:
        width: of the elements.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layer, relative to `width`.
        with_text: whether text joins the attention.

    References:
        Peebles & Xie, Scalable Diffusion Models with Transformers (2023), adaLN-zero.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, *, with_text: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.attention = Attention(width, num_heads, text_width=width if with_text else None)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        vector: Float[Tensor, "b w"],
        text: Float[Tensor, "b m w"] | None = None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """One block: `vector` says how, `text` joins the keys."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(vector)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attention(modulated(x, shift_a, scale_a), text, mask)
        return cast(Tensor, x + gate_f * self.feed_forward(modulated(x, shift_f, scale_f)))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm over the last axis, then `(1 + scale) x + shift`."""
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=1e-6), 1.0 + scale)


def zeroed(layer: Layer) -> Layer:
    """Starts a layer at zero, so that the residual branch that it ends starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
