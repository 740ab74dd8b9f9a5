"""What the training path costs: `python tests/bench/bench_train.py [--rounds 3] [--without-ray]`.

The demo DiT (3 x 32 x 32, patch 4, width 128, 4 blocks), batches of 32, one thread, fp32. Each comparison alternates
its two sides within one run and takes medians. Results go to tests/bench/results/train.md.

- Ray Train path against a plain PyTorch loop over the same cache and network, one worker each: steps per second.
- The moving average and asynchronous checkpoints, as shares of the step's time.
- Cached text embeddings against encoding each batch's captions with ViT-B-32's text tower (random weights).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.workflows.embed.texts import texts_at
from tests.workflows.train.conftest import write_cache
from workflows.config.load import load_config
from workflows.config.schema import TrainConfig
from workflows.data.dataset import Dataset
from workflows.data.pixels import to_data
from workflows.data.stage import build_data
from workflows.embed.cache import EmbeddingCache
from workflows.runtime.progress import Progress
from workflows.runtime.session import start_ray, stop_ray
from workflows.train.loop.fit import fit
from workflows.train.loop.trainer import Trainer
from workflows.train.losslog import read_losses
from workflows.train.networks import denoiser_network, noise_schedule
from workflows.train.objectives import DenoiserObjective

RESULTS = Path(__file__).parent / "results" / "train.md"
BATCH, CHECKPOINT_EVERY = 32, 250


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def prepare(folder: Path) -> tuple[DenoiserObjective, EmbeddingCache]:
    """Pictures of shapes, with text features drawn from a seed."""
    config = load_config("shapes", ["data.num_samples=2000", f"storage.root={folder}"])
    (folder / "data").mkdir()
    (folder / "cache").mkdir()
    build_data(config, {}, folder / "data", Progress.silent())
    cache = write_cache(Dataset.open(folder / "data"), folder / "cache")
    section = config.denoiser
    network = section.network.model_copy(update={"width": 128, "depth": 4, "patch_size": 4})
    return DenoiserObjective(denoiser_network(network, cache), noise_schedule(section.schedule), "v", "simple"), cache


def settings(steps: int, **values: object) -> TrainConfig:
    """One worker."""
    common = {"num_workers": 1, "sharding": "ddp", "batch_size": BATCH, "precision": "fp32", "warmup_steps": 10}
    return TrainConfig(**{**common, "steps": steps, "log_every": 25, **values})


def plain_rate(objective: DenoiserObjective, cache: EmbeddingCache, steps: int) -> float:
    """Steps per second of the loop that one would write by hand: shuffled rows, randn, AdamW, clip, average."""
    torch.manual_seed(0)
    network, rows = objective.build(), range(cache.num_samples("train"))
    images, positions = cache.images("train", rows), cache.batch("train", rows).captions[:, 0]
    captions = cache.captions.take(torch.arange(len(cache.captions)))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, (0.9, 0.99), fused=True)
    averages = [parameter.detach().clone() for parameter in network.parameters()]
    alpha_bar = objective.schedule.alpha_bar.float()
    order = torch.randperm(len(images))
    for step in range(steps + 25):
        if step == 25:
            started = time.perf_counter()
        rows = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        x0 = to_data(images[rows])
        tokens, mask, pooled = (part[positions[rows]] for part in captions)
        level, eps = torch.randint(1, len(alpha_bar), (BATCH,)), torch.randn_like(x0)
        a = alpha_bar[level].view(-1, 1, 1, 1)
        x_t, target = a.sqrt() * x0 + (1 - a).sqrt() * eps, a.sqrt() * eps - (1 - a).sqrt() * x0
        condition = torch_condition(tokens, mask, pooled, torch.rand(BATCH) < 0.1)
        loss = (network(x_t, level.float(), condition) - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(averages, [p.detach() for p in network.parameters()], 1e-3)
        if step % 25 == 0:
            float(loss)
    return steps / (time.perf_counter() - started)


def torch_condition(tokens: torch.Tensor, mask: torch.Tensor, pooled: torch.Tensor, drop: torch.Tensor) -> object:
    """The network's own argument, with some rows hidden."""
    from diffusion_core.condition import Condition

    keep = (~drop).float()
    return Condition.of(tokens * keep[:, None, None], mask & ~drop[:, None], pooled * keep[:, None])


def ray_rate(objective: DenoiserObjective, cache: EmbeddingCache, steps: int, folder: Path) -> tuple[float, float]:
    """Steps per second between the first and the last logged row, and the share of waiting for data."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    fit(objective, settings(steps + 25, checkpoint_every=CHECKPOINT_EVERY), cache, folder, Progress.silent())
    rows = read_losses(folder / "losses.csv")
    rate = (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["seconds"] - rows[0]["seconds"])
    return rate, statistics.median(row["data_wait"] for row in rows[1:])


def against_plain(objective: DenoiserObjective, cache: EmbeddingCache, folder: Path, rounds: int) -> list[str]:
    """Ray Train against a plain loop, each on one thread: a worker takes as many as the cluster has CPUs."""
    start_ray(num_cpus=1)
    plain, ours, waits = [], [], []
    for _ in range(rounds):
        plain.append(plain_rate(objective, cache, 250))
        rate, wait = ray_rate(objective, cache, 250, folder / "fit")
        ours.append(rate)
        waits.append(wait)
    stop_ray()
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    return [
        f"| Ray Train path, steps/s | {statistics.median(ours):.2f} | |",
        f"| plain loop, steps/s | {statistics.median(plain):.2f} | |",
        f"| Ray Train / plain (median of {rounds} pairs) | {ratio:.3f} | >= 0.97 |",
        f"| waiting for data | {100 * statistics.median(waits):.2f}% | <= 1% |",
    ]


def shares(objective: DenoiserObjective, cache: EmbeddingCache, folder: Path, rounds: int) -> list[str]:
    """The moving average and checkpoints."""
    trainer = Trainer(objective, settings(10_000), cache.folder, torch.device("cpu"))
    for _ in range(20):
        trainer.step()
    step, average = [], []
    for _ in range(25 * rounds):
        step.append(seconds(trainer.step))
        average.append(seconds(lambda: trainer.ema.update(trainer.network.module)))
    window, extra = 30, []
    for number in range(2 * rounds):
        plain = seconds(lambda: [trainer.step() for _ in range(window)])
        started = time.perf_counter()
        writing = trainer.save_async(folder / f"checkpoint-{number}")
        for _ in range(window):
            trainer.step()
        writing.result()
        extra.append(time.perf_counter() - started - plain)
    of_step = statistics.median(step)
    checkpoint = statistics.median(extra)
    return [
        f"| step, ms | {1e3 * of_step:.1f} | |",
        f"| moving average / step | {100 * statistics.median(average) / of_step:.2f}% | <= 2% |",
        f"| asynchronous checkpoint, ms that {window} steps take longer | {1e3 * checkpoint:.0f} | |",
        f"| the same, every {CHECKPOINT_EVERY} steps | {checkpoint / CHECKPOINT_EVERY / of_step:.2%} | <= 2% |",
    ]


def online(objective: DenoiserObjective, cache: EmbeddingCache, rounds: int) -> list[str]:
    """Cached against online text encoding."""
    import open_clip

    model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(texts_at(cache.reader, torch.arange(BATCH) % len(cache.captions)))
    trainer = Trainer(objective, settings(10_000), cache.folder, torch.device("cpu"))
    trainer.step()

    def encoding() -> None:
        with torch.no_grad():
            model.encode_text(tokens)
        trainer.step()

    encoding()
    ratios = [seconds(encoding) / seconds(lambda: [trainer.step() for _ in range(10)]) * 10 for _ in range(rounds)]
    return [f"| online / cached text encoding, time of a step (ViT-B-32) | {statistics.median(ratios):.1f}x | |"]


def main() -> None:
    """Prints the table and stores it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-ray", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| | found | wanted |", "| --- | ---: | ---: |"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        objective, cache = prepare(folder)
        dist.init_process_group("gloo", init_method=f"file://{name}/store", rank=0, world_size=1)
        lines += shares(objective, cache, folder, arguments.rounds)
        lines += online(objective, cache, arguments.rounds)
        dist.destroy_process_group()
        if not arguments.without_ray:
            lines += against_plain(objective, cache, folder, arguments.rounds)
    command = "python tests/bench/bench_train.py" + "".join(f" {word}" for word in sys.argv[1:])
    text = f"# Training\n\n`{command}`, torch {torch.__version__}, {torch.get_num_threads()} thread\n\n" + "\n".join(
        lines
    )
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
