"""What a text tower says about captions, whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class EncodedText(NamedTuple):
    """What the text tower says about m captions."""

    tokens: Tensor
    """(m, n, d) features after the last layer norm, one per token; zero where the mask is false."""
    mask: Tensor
    """(m, n) bool, true up to and including the end of the caption."""
    pooled: Tensor
    """(m, e) unit vectors in the shared space."""


class TextEncoder(Protocol):
    """Captions to features, as a denoiser was trained to read them."""

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """Encodes m captions, at least one; what exceeds the context length is cut off."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a caption that `encode` reads, without those that mark its ends."""
        ...

    def count(self, caption: str) -> int:
        """Tokens of a caption, read or not, without those that mark its ends."""
        ...


def tokens_cut(tower: TextEncoder, caption: str) -> int:
    """Tokens at the end of a caption that `encode` does not read."""
    # A token stands for a byte at least, so most captions need no count.
    if len(caption.encode(errors="replace")) <= tower.max_tokens:
        return 0
    return max(0, tower.count(caption) - tower.max_tokens)
