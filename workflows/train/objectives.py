"""The objectives that the loop trains: denoiser and noisy-image classifier. That of the CLIP is in `clip.objective`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.condition import NO_LABEL
from diffusion_core.denoiser import Network, NetworkDenoiser
from diffusion_core.networks import (
    NetworkConfig,
    NoisyClassifier,
    NoisyClassifierConfig,
    NoisyFeatures,
    contrastive_loss,
)
from diffusion_core.networks.registry import kind_of
from diffusion_core.objective import Weighting, training_loss
from diffusion_core.prediction import Parameterization
from diffusion_core.schedule import NoiseSchedule
from workflows.config.schema import TrainConfig
from workflows.train.batches import Batches, CachedBatches, TrainBatch, open_cache
from workflows.train.finetune import Start
from workflows.train.flop import flop_per_sample
from workflows.train.parallel import rows_of_all

_BETAS: Final = (0.9, 0.99)
_MAX_LOGIT_SCALE: Final = 100.0
_QUARTERS: Final = 4


class RowLosses(NamedTuple):
    """What a batch cost.

    Attributes:
        loss: of each of this worker's rows, `(b,)`; its mean over the rows of all workers is minimised.
        figures: what is logged beside it, each `(b,)`, averaged over all rows that have it: NaN where one has not.
    """

    loss: Tensor
    figures: Mapping[str, Tensor]


class Objective(Protocol):
    """What a network learns, as plain data that travels to the workers."""

    def describe(self) -> dict[str, Any]:
        """Everything that determines what is learned, as plain values."""
        ...

    def build(self) -> nn.Module:
        """The network with its initial weights, drawn from torch's global generator."""
        ...

    def open(self, folder: Path, config: TrainConfig, device: torch.device) -> Batches:
        """What is read from the artifact in this folder, the `Source` of the training."""
        ...

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Of the network as it is trained: on its device, sharded."""
        ...

    def flop_per_sample(self, num_tokens: int) -> float:
        """Floating-point operations of a row's forward and backward pass, with this many tokens in a caption."""
        ...

    def losses(self, network: nn.Module, batch: Any) -> RowLosses:
        """The losses of this worker's rows, which `open` gave; all workers call it together."""
        ...


class NoisyObjective:
    """What denoiser and classifier share: one of the core's networks, which learns from noised rows of a cache.

    Attributes:
        config: of the network.
        schedule: of the noise.
    """

    config: NetworkConfig
    schedule: NoiseSchedule

    def open(self, folder: Path, config: TrainConfig, device: torch.device) -> CachedBatches:
        """See `Objective.open`; the artifact is an embedding cache."""
        return CachedBatches(open_cache(folder, config, device), self.schedule.num_levels, config, device)

    def optimizer(self, network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """See `Objective.optimizer`."""
        return adamw([{"params": trained(network)}], config, _BETAS)

    def flop_per_sample(self, num_tokens: int) -> float:
        """See `Objective.flop_per_sample`."""
        return flop_per_sample(self.config, num_tokens)


@final
@dataclass(frozen=True, eq=False)
class DenoiserObjective(NoisyObjective):
    """`L_simple`: weight(level) times the mean squared error of what the network predicts.

    Attributes:
        config: of the network.
        schedule: of the noise.
        parameterization: what the network predicts.
        weighting: of the loss over levels.
        start: what a fine-tune begins with; None: random weights.
    """

    config: NetworkConfig
    schedule: NoiseSchedule
    parameterization: Parameterization
    weighting: Weighting
    start: Start | None = None

    def describe(self) -> dict[str, Any]:
        """See `Objective.describe`."""
        start = {} if self.start is None else self.start.describe()
        return _described(self) | {"target": self.parameterization, "weighting": self.weighting} | start

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        return kind_of(self.config).build(self.config) if self.start is None else self.start.network()

    def losses(self, network: nn.Module, batch: TrainBatch) -> RowLosses:
        """See `Objective.losses`."""
        denoiser = NetworkDenoiser(cast(Network, network), self.schedule, self.parameterization)
        target, weighting = self.parameterization, self.weighting
        loss = training_loss(
            denoiser, batch.x0, batch.draws, batch.condition, parameterization=target, weighting=weighting
        )
        return RowLosses(loss, _by_level(loss, batch, self.schedule))


@final
@dataclass(frozen=True, eq=False)
class ClassifierObjective(NoisyObjective):
    """Cross-entropy of the label, plus the symmetric contrastive loss of x_t against its caption.

    Captions compete with those of all workers' rows, so the loss does not depend on how many there are.

    Attributes:
        config: of the network; its heads say which losses there are.
        schedule: of the noise.
        candidates: pooled captions that a text competes with in use, `(m, e)`.
    """

    config: NoisyClassifierConfig
    schedule: NoiseSchedule
    candidates: Tensor

    def describe(self) -> dict[str, Any]:
        """See `Objective.describe`."""
        return _described(self) | {"candidates": hashlib.sha256(self.candidates.numpy().tobytes()).hexdigest()}

    def build(self) -> nn.Module:
        """See `Objective.build`."""
        network = NoisyClassifier(self.config)
        network.candidates.copy_(self.candidates)
        return network

    def losses(self, network: nn.Module, batch: TrainBatch) -> RowLosses:
        """See `Objective.losses`."""
        level = batch.draws.level
        x_t = self.schedule.q_sample(batch.x0, level, batch.draws.eps)
        features: NoisyFeatures = network(x_t, level.to(x_t))
        loss, figures = batch.x0.new_zeros(len(batch)), {}
        if features.logits is not None:
            label = cast(Tensor, batch.condition.label)
            logits = features.logits.float()
            figures["label_loss"] = functional.cross_entropy(logits, label, ignore_index=NO_LABEL, reduction="none")
            figures["label_accuracy"] = (logits.argmax(dim=1) == label).float()
            loss = loss + figures["label_loss"]
        if features.embedding is not None:
            captions = rows_of_all(cast(Tensor, batch.condition.pooled), batch.share, batch.num_all)
            figures["text_loss"] = contrastive_loss(_everyone(features, batch), captions)[batch.share.rows]
            loss = loss + figures["text_loss"]
        return RowLosses(loss, figures | _by_level(loss, batch, self.schedule))


def _described(objective: NoisyObjective) -> dict[str, Any]:
    config = cast(Any, objective.config)
    return {"kind": kind_of(config).name, "network": asdict(config), "schedule": objective.schedule.to_config()}


def _by_level(loss: Tensor, batch: TrainBatch, schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The loss told apart by quarters of the levels, from clean to noisy."""
    quarter = ((batch.draws.level - 1) * _QUARTERS // schedule.num_levels).to(loss.device)
    return {f"loss_level_{i}": loss.detach().masked_fill(quarter != i, torch.nan) for i in range(_QUARTERS)}


def _everyone(features: NoisyFeatures, batch: TrainBatch) -> NoisyFeatures:
    """The features with the embeddings of all workers' rows, in the order of the global batch."""
    everyone = rows_of_all(cast(Tensor, features.embedding).float(), batch.share, batch.num_all)
    scale = cast(Tensor, features.logit_scale).float().clamp(max=_MAX_LOGIT_SCALE)
    return features._replace(embedding=everyone, logit_scale=scale)


def trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that change."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def adamw(groups: Iterable[dict[str, Any]], config: TrainConfig, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW; a group without a `weight_decay` has the configured one."""
    return torch.optim.AdamW(list(groups), config.learning_rate, betas, weight_decay=config.weight_decay, fused=True)
