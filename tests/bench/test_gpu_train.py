"""A DiT of about 130M parameters at 32 x 32 x 4 latents on one GPU: images/s and model FLOP utilisation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from diffusion_core.condition import Condition
from diffusion_core.ema import EMA
from diffusion_core.networks import DiTConfig
from diffusion_core.objective import TrainingDraws
from diffusion_core.schedule import NoiseSchedule
from workflows.config.schema import TrainConfig
from workflows.train.batches import Share, TrainBatch
from workflows.train.flop import Speed, flop_per_sample
from workflows.train.objectives import DenoiserObjective
from workflows.train.parallel import parallelize, precision

SHAPE, TOKENS, BATCH, STEPS = (4, 32, 32), 77, 128, 50
RESULTS = Path(__file__).parent / "results" / "gpu_train.md"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[torch.device]:
    """A process group of one GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.device("cuda", 0)
    dist.destroy_process_group()


@pytest.mark.gpu
def test_utilisation_of_a_130_million_parameter_dit(alone: torch.device) -> None:
    config = DiTConfig(SHAPE, patch=2, width=768, depth=12, num_heads=12, token_dim=512, pooled_dim=512)
    objective = DenoiserObjective(config, NoiseSchedule.cosine(1000), "v", "simple")
    train = TrainConfig(sharding="fsdp", precision="bf16", compile=True, batch_size=BATCH)
    network = parallelize(objective.build(), train, alone)
    average, optimizer = EMA(network), torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    tokens = torch.randn(BATCH, TOKENS, 512, device=alone)
    pooled = torch.randn(BATCH, 512, device=alone)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool, device=alone)
    draws = TrainingDraws(
        torch.randint(1, 1001, (BATCH,), device=alone),
        torch.randn(BATCH, *SHAPE, device=alone),
        torch.rand(BATCH, device=alone) < 0.1,
    )
    x0, ids = torch.randn(BATCH, *SHAPE, device=alone), torch.arange(BATCH)
    batch = TrainBatch(ids, x0, draws, Condition.of(tokens, mask, pooled), pooled, Share())

    def step() -> None:
        with precision(train, alone):
            loss = objective.losses(network, batch).loss.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(network)

    for _ in range(10):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    rate = STEPS * BATCH / (time.perf_counter() - started)
    speed = Speed.measured(flop_per_sample(config, TOKENS), alone, Share())
    used = speed.figures(rate)["mfu"]
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    text = (
        f"# DiT of {parameters:.0f}M parameters\n\n`make bench-gpu` on {torch.cuda.get_device_name(0)}, bf16, "
        f"compiled blocks, batch {BATCH}: {rate:.0f} images/s, MFU {100 * used:.1f}% of the measured "
        f"{speed.rate / 1e12:.0f} TFLOP/s\n"
    )
    print(text)
    RESULTS.write_text(text)
    assert 120 < parameters < 220
    assert used >= 0.45
