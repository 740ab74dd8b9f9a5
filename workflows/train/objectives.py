"""What is trained: the denoiser, or the noisy-image classifier. The loop is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, Protocol, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.condition import NO_LABEL, Condition
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
from workflows.interop.finetune import Start
from workflows.train.batches import TrainBatch

_MAX_LOGIT_SCALE: Final = 100.0


class RowLosses(NamedTuple):
    """What a batch cost.

    Attributes:
        loss: of each of this worker's rows, `(b,)`; its mean over the rows of all workers is minimised.
        figures: what is logged beside it, each `(b,)`, averaged over all rows.
    """

    loss: Tensor
    figures: Mapping[str, Tensor]


class Objective(Protocol):
    """What a network learns, as plain data that travels to the workers."""

    @property
    def config(self) -> NetworkConfig:
        """Of the network."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the noise."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that determines what is learned, as plain values."""
        ...

    def build(self) -> nn.Module:
        """The network with its initial weights, drawn from torch's global generator."""
        ...

    def losses(self, network: nn.Module, batch: TrainBatch) -> RowLosses:
        """The losses of this worker's rows; all workers call it together."""
        ...


def forward_row(config: NetworkConfig, num_tokens: int) -> None:
    """One row through a network of this size, on the default device: what is counted by `flop.py`."""
    network, condition = kind_of(config).build(config), None
    x, level = torch.zeros(1, *config.shape), torch.ones(1)
    if isinstance(config, NoisyClassifierConfig):
        network(x, level)
        return
    sizes = cast(Any, config)
    if sizes.token_dim is not None:
        condition = Condition.of(
            torch.zeros(1, num_tokens, sizes.token_dim), torch.ones(1, num_tokens, dtype=torch.bool)
        )
    network(x, level, condition)


@final
@dataclass(frozen=True, eq=False)
class DenoiserObjective:
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
        return RowLosses(loss, {})


@final
@dataclass(frozen=True, eq=False)
class ClassifierObjective:
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
            figures["text_loss"] = contrastive_loss(_everyone(features, batch), batch.all_pooled)[batch.share.rows]
            loss = loss + figures["text_loss"]
        return RowLosses(loss, figures)


def _described(objective: Objective) -> dict[str, Any]:
    config = cast(Any, objective.config)
    return {"kind": kind_of(config).name, "network": asdict(config), "schedule": objective.schedule.to_config()}


def _everyone(features: NoisyFeatures, batch: TrainBatch) -> NoisyFeatures:
    """The features with the embeddings of all workers' rows, in the order of the global batch."""
    own = cast(Tensor, features.embedding).float()
    everyone = own.new_zeros(len(batch.all_pooled), own.shape[1])
    everyone[batch.share.rows] = own
    if batch.share.size > 1:
        everyone = cast(Tensor, _Sum.apply(everyone))
    scale = cast(Tensor, features.logit_scale).float().clamp(max=_MAX_LOGIT_SCALE)
    return features._replace(embedding=everyone, logit_scale=scale)


@final
class _Sum(torch.autograd.Function):
    """Sums over the workers, and the gradients of all workers' losses on the way back."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
