"""A network that says how well a noisy image matches a class or a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidCondition, InvalidGuidance, InvalidShape
from diffusion_core.networks.attention import TransformerBlock, modulated
from diffusion_core.networks.embedding import LevelEmbedding, check_labels
from diffusion_core.networks.patches import PatchGrid, Stem, VectorEmbedding, patch_embedding
from diffusion_core.types import Data, Levels, RowMask, Rows

SAME_TEXT = 1.0 - 1e-5
"""Cosine from which two pooled vectors are the same caption: encoded in other batches they differ by rounding."""


@dataclass(frozen=True)
class NoisyClassifierConfig:
    """The size of a `NoisyClassifier`.

    Attributes:
        shape: of one row, `(c, *axes)`, or `(c,)` for vectors.
        patch: length of a patch along each axis, or one for all; vectors have none.
        stem: what makes a vector of a patch.
        width: of the blocks.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers, relative to `width`.
        num_classes: of the label head; None: there is none.
        embed_dim: width of the CLIP's pooled text vectors, which the text head matches; None: there is none.
        num_candidates: pooled captions that a text competes with; 0: none, the text head gives plain cosines.
    """

    shape: tuple[int, ...]
    patch: int | tuple[int, ...] = 4
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    embed_dim: int | None = None
    num_candidates: int = 0
    stem: Stem = "linear"


class NoisyFeatures(NamedTuple):
    """What a `NoisyClassifier` sees in x_t.

    Attributes:
        logits: over the classes, `(b, classes)`, or None.
        embedding: of unit length, `(b, embed_dim)`, or None.
        logit_scale: inverse temperature of cosines, `(1,)`, or None.
    """

    logits: Float[Tensor, "b classes"] | None
    embedding: Float[Tensor, "b d"] | None
    logit_scale: Float[Tensor, "1"] | None


@final
class NoisyClassifier(nn.Module):
    """A transformer encoder of x_t and its level, with a label head, a text head, or both.

    It is never shown the condition, so that its gradient is that of p(condition | x_t).

    Attributes:
        candidates: pooled vectors of the captions that a text competes with, `(num_candidates, embed_dim)`:
            set them with `classifier.candidates.copy_(...)`; they are saved with the weights.

    Args:
        config: its size.

    Raises:
        InvalidShape: neither head is asked for, or sizes that do not fit.

    References:
        Dhariwal & Nichol, Diffusion Models Beat GANs (2021), section 4; Nichol et al., GLIDE (2021), section 2.3.
    """

    candidates: Float[Tensor, "m d"]

    def __init__(self, config: NoisyClassifierConfig) -> None:
        super().__init__()
        if config.num_classes is None and config.embed_dim is None:
            raise InvalidShape("a noisy classifier needs num_classes, embed_dim or both")
        self.config, width = config, config.width
        self.patches = (
            VectorEmbedding(config.shape[0], width)
            if len(config.shape) == 1
            else patch_embedding(PatchGrid(config.shape, config.patch), width, config.stem)
        )
        self.level = LevelEmbedding(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio, with_text=False) for _ in range(config.depth)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.label_head = None if config.num_classes is None else nn.Linear(width, config.num_classes)
        self.text_head = None if config.embed_dim is None else nn.Linear(width, config.embed_dim, bias=False)
        # One element rather than none: FSDP shards no scalars.
        self.log_scale = None if config.embed_dim is None else nn.Parameter(torch.full((1,), 10.0).log())
        self.register_buffer("candidates", torch.zeros(config.num_candidates, config.embed_dim or 0))

    def forward(self, x_t: Data, level: Rows) -> NoisyFeatures:
        """Looks at noisy data.

        Args:
            x_t: `(b, *shape)`.
            level: of each row, real-valued `(b,)`.
        """
        vector = functional.silu(self.level(level))
        elements = self.patches(x_t)
        for block in self.blocks:
            elements = block(elements, vector)
        shift, scale = self.modulation(vector).chunk(2, dim=-1)
        seen = modulated(elements.mean(dim=1), shift, scale)
        logits = None if self.label_head is None else self.label_head(seen)
        if self.text_head is None:
            return NoisyFeatures(logits, None, None)
        embedding = functional.normalize(self.text_head(seen), dim=-1)
        return NoisyFeatures(logits, embedding, cast(Tensor, self.log_scale).exp())

    def log_density(self, x: Data, level: Levels, condition: Condition) -> Rows:
        """Gives log p(condition | x_t) of each row: by its label, if it has one and a label head is there, or its text.

        The text head scores `logit_scale cos(embedding(x_t), pooled)`, normalised over `candidates` if there are
        any; a row's own text joins them if it is not among them.

        Args:
            x: noisy data `(b, *shape)`.
            level: `(b,)`, integers.
            condition: what each row is judged by, hidden from the denoiser or not.

        Returns:
            `(b,)`, differentiable in `x`.

        Raises:
            InvalidGuidance: rows with nothing that a head here can judge.
            InvalidCondition: pooled vectors of another width, or a label that no class has.
        """
        by_label, by_text = self._judged_by(condition, x)
        seen = self(x, level.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32))
        density = x.new_zeros(len(x))
        if bool(by_label.any()):
            label = cast(Tensor, condition.label).to(x.device).clamp(min=0)
            density = torch.where(by_label, _label_density(seen.logits, label), density)
        if bool(by_text.any()):
            pooled = cast(Tensor, condition.pooled).to(x)
            target = torch.where(by_text[:, None], pooled, 1.0)
            text = text_density(seen.embedding, seen.logit_scale, target, self.candidates)
            density = torch.where(by_text, text, density)
        return density

    def _judged_by(self, condition: Condition, x: Tensor) -> tuple[RowMask, RowMask]:
        nobody = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        by_label = by_text = nobody
        if self.label_head is not None and condition.label is not None:
            check_labels(condition.label, cast(int, self.config.num_classes))
            by_label = condition.label.to(x.device) >= 0
        if self.text_head is not None and condition.pooled is not None:
            if condition.pooled.shape[1] != self.config.embed_dim:
                raise InvalidCondition(
                    f"found pooled vectors of width {condition.pooled.shape[1]}, wanted {self.config.embed_dim}: "
                    "use the CLIP that this classifier was trained with"
                )
            by_text = (condition.pooled.to(x.device) != 0).any(dim=1) & ~by_label
        if not bool((by_label | by_text).all()):
            rows = (~(by_label | by_text)).nonzero().flatten().tolist()
            heads = [name for name, head in (("label", self.label_head), ("text", self.text_head)) if head is not None]
            raise InvalidGuidance(
                f"rows {rows} have no target for this classifier, which judges by {' or '.join(heads)}"
            )
        return by_label, by_text


def _label_density(logits: Tensor | None, label: Tensor) -> Rows:
    return functional.log_softmax(cast(Tensor, logits), dim=-1).gather(1, label[:, None])[:, 0]


def text_density(
    embedding: Tensor | None, logit_scale: Tensor | None, pooled: Float[Tensor, "b d"], candidates: Float[Tensor, "m d"]
) -> Rows:
    """`s cos(e, pooled) - logsumexp_k s cos(e, candidate_k)` over the candidates and the row's own text.

    Args:
        embedding: e, of unit length, `(b, d)`.
        logit_scale: s, `(1,)`.
        pooled: each row's text.
        candidates: texts that it competes with; none: the plain scaled cosine.
    """
    seen, scale = cast(Tensor, embedding), cast(Tensor, logit_scale)
    own_text = functional.normalize(pooled, dim=-1)
    own = scale * (seen * own_text).sum(dim=-1)
    if len(candidates) == 0:
        return own
    others = functional.normalize(candidates.to(seen), dim=-1)
    listed = same_text(own_text, others).any(dim=1)
    rivals = torch.cat([scale * seen @ others.T, own.masked_fill(listed, -torch.inf)[:, None]], dim=1)
    return own - rivals.logsumexp(dim=1)


def same_text(a: Float[Tensor, "b d"], b: Float[Tensor, "m d"]) -> Bool[Tensor, "b m"]:
    """Which pairs of pooled vectors are the same caption."""
    return functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).T > SAME_TEXT


def contrastive_loss(features: NoisyFeatures, pooled: Float[Tensor, "b d"]) -> Rows:
    """Symmetric contrastive loss of each row's image and text, in nats.

    Row i's text should stand out among the batch's texts, and its image among the images. Rows with the same
    caption are no wrong answers to each other.

    Args:
        features: of `NoisyClassifier`, with an embedding.
        pooled: the rows' captions.

    Returns:
        `(b,)`: its mean is CLIP's loss when all captions differ.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision (2021).
    """
    seen, scale = cast(Tensor, features.embedding), cast(Tensor, features.logit_scale)
    text = functional.normalize(pooled.to(seen), dim=-1)
    own = torch.eye(len(text), dtype=torch.bool, device=text.device)
    logits = (scale * seen @ text.T).masked_fill(same_text(text, text) & ~own, -torch.inf)
    target = torch.arange(len(text), device=text.device)
    to_text = functional.cross_entropy(logits, target, reduction="none")
    return (to_text + functional.cross_entropy(logits.T, target, reduction="none")) / 2.0
