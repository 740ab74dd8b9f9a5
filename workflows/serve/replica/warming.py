"""The device of the network, its batch sizes, and its first passes, which are made before any client waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import torch

from diffusion_core.condition import Condition
from workflows.model.model import ModelPackage
from workflows.options.guidance import KINDS
from workflows.serve.engine.costs import StepTimes

MAX_DECODED: Final = 8
"""Samples in one batch of the decoder."""


def device_of(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for."""
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def buckets_of(max_rows: int) -> tuple[int, ...]:
    """Sizes of a step in network evaluations: powers of two, up to two evaluations for each of `max_rows` rows."""
    return tuple(2**power for power in range((2 * max_rows - 1).bit_length() + 1))


def padding_of(device: torch.device, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Batch sizes to which the network's batches are padded; on a CPU there are none.

    A GPU computes a few more rows in nearly the same time, and few sizes mean few kernels to choose and to warm. On a
    CPU every row takes its time: 44 rows padded to 64 would be half as much work again.
    """
    return buckets if device.type == "cuda" else ()


def warm(package: ModelPackage, buckets: Sequence[int]) -> StepTimes:
    """Makes the network compute every batch size and every kind of guidance once.

    Returns:
        The measured duration of a step of the largest batch, so that the first requests can be told how long they take.
    """
    plain = "none" if package.conditions == "nothing" else "direct"
    batches = [(rows, plain) for rows in buckets]
    batches += [(1, kind) for kind in package.guidance if KINDS[kind].scale is not None]
    for rows, guidance in batches:
        x = package.sample(_example(package, rows, guidance), seeds=list(range(rows)), plan=package.plan(num_steps=1))
        if rows <= MAX_DECODED:
            package.drawn(x)

    times = StepTimes(buckets, padded=bool(padding_of(package.device, tuple(buckets))))
    condition, seeds = _example(package, buckets[-1], plain), list(range(buckets[-1]))
    started = time.perf_counter()
    package.sample(condition, seeds=seeds, plan=package.plan(num_steps=1))
    times.learn(buckets[-1], time.perf_counter() - started)
    return times


def _example(package: ModelPackage, rows: int, guidance: str) -> Condition:
    if package.reads_text:
        return package.condition([package.card.candidate_captions[0]] * rows, guidance)
    labels = [0] * rows if package.sees_labels and guidance != "none" else None
    return package.condition(rows, guidance, labels=labels)
