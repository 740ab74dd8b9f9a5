"""Trains on a Ray of its own, to be killed: python train_job.py CACHE FOLDER STEPS."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from workflows.config.schema import NetworkConfig, ScheduleConfig, TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.runtime.progress import Progress
from workflows.runtime.session import start_ray, stop_ray
from workflows.train.loop.fit import fit
from workflows.train.networks import denoiser_network, noise_schedule
from workflows.train.objectives import DenoiserObjective


def job(cache_folder: Path, folder: Path, steps: int, checkpoint_every: int = 15) -> None:
    """Trains on the Ray that is there, and leaves `weights.safetensors`."""
    cache = EmbeddingCache.open(cache_folder)
    network = denoiser_network(NetworkConfig(width=32, depth=2, patch_size=2, num_heads=2), cache)
    objective = DenoiserObjective(network, noise_schedule(ScheduleConfig()), "v", "simple")
    config = TrainConfig(
        steps=steps, batch_size=16, checkpoint_every=checkpoint_every, log_every=5, max_failures=9, warmup_steps=10
    )
    trained = fit(objective, config, cache, folder, Progress.silent())
    both = {
        f"{kind}.{name}": t.contiguous() for kind in ("weights", "ema") for name, t in getattr(trained, kind).items()
    }
    save_file(both, folder / "weights.safetensors")


if __name__ == "__main__":
    start_ray(num_cpus=2)
    job(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    stop_ray()
