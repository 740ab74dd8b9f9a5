"""The body of the training loop, for any objective: read, forward, backward, clip, update, average.

A `Trainer` needs a torch process group and nothing of Ray, so tests and plain scripts can step it.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, cast, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffusion_core.ema import EMA, ConstantDecay, PowerFunction
from diffusion_core.errors import NonFinite
from workflows.config.schema import TrainConfig
from workflows.train.batches import Batch, Share
from workflows.train.loop.figures import Figures
from workflows.train.loop.read_ahead import ReadAhead
from workflows.train.objectives import Objective
from workflows.train.parallel import parallelize, precision, synchronize, unwrapped, whole

# Frozen weights are those of the base, which every worker has.
_TRAINED: Final = StateDictOptions(ignore_frozen_params=True, strict=False)


@final
class Trainer:
    """Network, optimizer, average and cursor of one worker; needs a process group.

    Args:
        objective: what is trained.
        config: how.
        source: folder of the artifact that it learns from.
        device: where to.

    Attributes:
        samples_seen: rows of all steps so far, over all workers: the only position in the plan.
        ema: the average that becomes the model.
        powers: power-function averages by relative width.
    """

    def __init__(self, objective: Objective, config: TrainConfig, source: Path, device: torch.device) -> None:
        self.objective, self.config, self.samples_seen = objective, config, 0
        self.share = Share(dist.get_rank(), dist.get_world_size())
        self.batches = objective.open(source, config, device)
        self._ahead = ReadAhead(self.batches, config, self.share)
        self.figures = Figures(device)
        self.device, self._writers = device, cast("dist.ProcessGroup | None", None)
        torch.manual_seed(config.seed)
        self.network = parallelize(objective.build(), config, device)
        self.ema = EMA(unwrapped(self.network), ConstantDecay(config.ema_decay))
        self.powers = {width: EMA(unwrapped(self.network), PowerFunction(width)) for width in config.ema_widths}
        self.optimizer = objective.optimizer(self.network, config)

    @property
    def steps_done(self) -> int:
        """Optimizer steps so far."""
        return self.samples_seen // self.config.batch_size

    def step(self) -> None:
        """One update from the next global batch.

        Raises:
            NonFinite: a loss or a gradient is not finite: raised on every worker, before the update.
        """
        started, waited, seen = time.perf_counter(), 0.0, []
        for part in range(self.config.accumulate):
            begun = time.perf_counter()
            batch = self._ahead.read(self.samples_seen, part)
            waited += time.perf_counter() - begun
            seen.append((batch, self._backward(batch, last=part + 1 == self.config.accumulate)))
        norm = self._update(seen)
        self.samples_seen += self.config.batch_size
        self.figures.step(norm, time.perf_counter() - started, waited)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._ahead.close()

    def save(self, folder: Path) -> None:
        """Writes this worker's part of a distributed checkpoint."""
        save(self._state(), checkpoint_id=folder)

    def save_async(self, folder: Path) -> Future[Any]:
        """As `save`, from a copy of the state that is taken now and written while training goes on.

        The writers talk to each other over a process group of their own, which the first call makes.
        """
        if self._writers is None:
            self._writers = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        return cast("Future[Any]", async_save(self._state(), checkpoint_id=folder, process_group=self._writers))

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint, of any number of workers and either kind of sharding."""
        state = self._state()
        load(state, checkpoint_id=folder)
        set_model_state_dict(self.network, state["network"], options=_TRAINED)
        set_optimizer_state_dict(self.network, self.optimizer, state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        for width, power in self.powers.items():
            power.load_state_dict(state[_power(width)])
        self.samples_seen = int(state["samples_seen"])

    def _state(self) -> dict[str, Any]:
        return {
            "network": get_model_state_dict(self.network, options=_TRAINED),
            "optimizer": get_optimizer_state_dict(self.network, self.optimizer),
            "ema": self.ema.state_dict(),
            "samples_seen": self.samples_seen,
        } | {_power(width): power.state_dict() for width, power in self.powers.items()}

    def _backward(self, batch: Batch, *, last: bool) -> Tensor:
        with synchronize(self.network, last):
            with precision(self.config, self.device):
                losses = self.objective.losses(self.network, batch)
            total = losses.loss.sum()
            # Gradients are averaged over the workers, so a worker's sum counts as often as there are workers.
            # The zero is NaN if the sum is not finite: then so is the gradient, and every worker sees it.
            total.backward(self.share.size / self.config.batch_size + 0.0 * total.detach())
        self.figures.add(losses)
        return losses.loss.detach()

    def _update(self, seen: list[tuple[Batch, Tensor]]) -> Tensor:
        parameters = list(self.network.parameters())
        norm = whole(get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not bool(torch.isfinite(norm)):
            raise self._not_finite(seen)
        clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.steps_done)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average in (self.ema, *self.powers.values()):
            average.update(unwrapped(self.network))
        return norm

    def _not_finite(self, seen: list[tuple[Batch, Tensor]]) -> NonFinite:
        """The gradient's norm is the same on all workers, so all of them come here."""
        own = [int(i) for batch, loss in seen for i in batch.sample_ids[~torch.isfinite(loss).cpu()]]
        gathered: list[list[int]] = [[] for _ in range(self.share.size)]
        dist.all_gather_object(gathered, own)
        rows = tuple(sorted(set().union(*gathered)))
        fault = f"the loss of samples {list(rows)}" if rows else "the gradient (every loss is finite)"
        return NonFinite(
            f"step {self.steps_done + 1}: {fault} is not finite, so the update was not made: "
            f"look at these samples, lower learning_rate, or use precision fp32",
            rows,
        )


def _power(width: float) -> str:
    return f"ema_power_{width:g}"


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or a cosine that ends near 0, of the step with this many before it."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
