"""What a small CLIP learns: the contrastive loss of pictures and captions.

    loss = (CE(s V U^T, identity) + CE(s U V^T, identity)) / 2

with V, U the unit vectors of a group's pictures and captions and s the learned scale (`open_clip.ClipLoss`). The loss
of a batch is the mean over its groups, whose rows may lie on several workers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from workflows.config.schema import ClipConfig, TrainConfig
from workflows.storage.copies import CopySettings
from workflows.towers.clip import PictureFormat
from workflows.towers.clip_model import build_model, build_tokenizer, model_config
from workflows.train.clip.batches import ClipBatch, ClipBatches
from workflows.train.flop import training_flop
from workflows.train.objectives import RowLosses, adamw, trained
from workflows.train.parallel import rows_of_all, unwrapped

_BETAS: Final = (0.9, 0.98)
_MAX_LOGIT_SCALE: Final = math.log(100)
_TABLE: Final = "token_embedding.weight"
_SCALE: Final = "logit_scale"


class ClipFeatures(NamedTuple):
    """Unit vectors of pictures and captions, `(b, e)`, and the factor of their cosine, `(1,)`."""

    image: Tensor
    text: Tensor
    scale: Tensor


@final
class _Norm(nn.LayerNorm):
    """In single precision: where sharded weights come in bfloat16, a CPU does not mix the two."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x)


@final
class CompactClip(nn.Module):
    """An open_clip model that embeds only the tokens that occur.

    AdamW over the whole table of 49,408 tokens would be a fifth of a step, to move what has no gradient. The compact
    ids keep the order of the old ones, so that the end of a text is still the largest.

    Args:
        model: changed in place.
        vocabulary: token ids that occur, ascending, `(v,)`.
    """

    def __init__(self, model: Any, vocabulary: Tensor) -> None:
        super().__init__()
        table = model.token_embedding.weight.detach()
        model.token_embedding = nn.Embedding.from_pretrained(table[vocabulary.to(table.device)], freeze=False)
        # A tensor without dimensions cannot be sharded.
        model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.__class__ = _Norm
        self.model = model

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of both towers, which are sharded one by one."""
        return [*self.model.visual.transformer.resblocks, *self.model.transformer.resblocks]

    def forward(self, x: Tensor, ids: Tensor) -> ClipFeatures:
        """Pictures in [-1, 1] or normalised vectors, and compact token ids `(b, n)`."""
        found = self.model(PictureFormat.of(self.model).prepare(x), ids)
        return ClipFeatures(found["image_features"], found["text_features"], found["logit_scale"])

    @torch.no_grad()
    def bound_scale(self) -> None:
        """Keeps the factor between 1 and 100."""
        scale = self.model.logit_scale
        (scale.to_local() if isinstance(scale, DTensor) else scale).clamp_(0.0, _MAX_LOGIT_SCALE)


@final
@dataclass(frozen=True, eq=False)
class ClipObjective:
    """Trains `clip_model.build_model` on the pictures and captions of the data.

    Attributes:
        clip: sizes and seed.
        side: pixels of a side of what the image tower takes.
        vocabulary: token ids that occur in the captions, ascending, `(v,)`.
    """

    clip: ClipConfig
    side: int
    vocabulary: Tensor

    def describe(self) -> dict[str, Any]:
        """See `Objective.describe`."""
        vocabulary = hashlib.sha256(self.vocabulary.numpy().tobytes()).hexdigest()
        return {"kind": "clip", "network": model_config(self.clip, self.side), "vocabulary": vocabulary}

    def build(self) -> CompactClip:
        """See `Objective.build`."""
        return CompactClip(build_model(self.clip, self.side)[0], self.vocabulary)

    def open(self, folder: Path, config: TrainConfig, device: torch.device) -> ClipBatches:
        """See `Objective.open`; the artifact is the data."""
        return ClipBatches(
            folder,
            build_tokenizer(self.clip),
            self.vocabulary,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            device=device,
            copies=CopySettings(config.cache_folder, config.cache_bytes),
        )

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """See `Objective.optimizer`; only matrices decay."""
        parameters = trained(network)
        matrices, others = ([p for p in parameters if (p.ndim >= 2) is wanted] for wanted in (True, False))
        optimizer = adamw([{"params": matrices}, {"params": others, "weight_decay": 0.0}], config, _BETAS)
        optimizer.register_step_post_hook(lambda *_: cast(CompactClip, unwrapped(network)).bound_scale())
        return optimizer

    def flop_per_sample(self, num_tokens: int) -> float:
        """See `Objective.flop_per_sample`."""
        ids = (1, num_tokens)
        return training_flop(
            lambda: self.build()(torch.zeros(1, 3, self.side, self.side), torch.zeros(ids, dtype=torch.int64))
        )

    def losses(self, network: nn.Module, batch: ClipBatch) -> RowLosses:
        """See `Objective.losses`."""
        found: ClipFeatures = network(batch.x, batch.ids)
        image, text = (rows_of_all(own.float(), batch.share, len(batch.groups)) for own in (found.image, found.text))
        scale = found.scale.float()
        loss = (_contrast(scale * image, text, batch) + _contrast(scale * text, image, batch)) / 2.0
        return RowLosses(loss, {})

    def whole(self, weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """The open_clip model with these weights of a `CompactClip` and the whole vocabulary, and its tokenizer.

        Tokens that do not occur keep their initial embedding.
        """
        model, tokenizer = build_model(self.clip, self.side)
        found = {name.removeprefix("model."): value for name, value in weights.items()}
        table = model.token_embedding.weight.detach().clone()
        table[self.vocabulary] = found[_TABLE]
        model.load_state_dict(found | {_TABLE: table, _SCALE: found[_SCALE].reshape(())})
        return model.eval(), tokenizer


def _contrast(scaled: Tensor, others: Tensor, batch: ClipBatch) -> Tensor:
    """Cross-entropy of this worker's rows, each against the other side of its group."""
    own, places = batch.share.rows, torch.arange(len(others), device=others.device)
    logits = (scaled[own] @ others.T).masked_fill(batch.groups[own, None] != batch.groups, -torch.inf)
    return functional.cross_entropy(logits, places[own], reduction="none")
