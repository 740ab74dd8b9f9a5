"""Measures how training reads data larger than memory: `python tests/bench/bench_ingest.py [PART ...]`.

Caches are written directly, with random numbers: rows of 77 x 768 tokens in bfloat16, of which 14 are kept, and latents
of 4 x 64 x 64 with their deviation: 152 KB a row. Two million of those are 305 GB, so growth is measured on rows with a
tenth of the width: 192 wide tokens and latents of 4 x 20 x 20, 19 KB a row. Parts:

    memory   USS of a worker, and seconds until its first batch, at 20 thousand to 2 million rows
    speed    steps per second against rows that are all in memory, and the share of waiting for data
    store    the same through an S3 server with 20 ms a request; what two workers fetch; what they read from the disk
    mixing   how far an epoch mixes rows that come sorted, against a permutation of all of them
    formats  Arrow files that are mapped, against Lance and Parquet: random rows of a window

Each comparison alternates its two sides within one run and takes medians. Results go to tests/bench/results/ingest.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from diffusion_core.networks import DiTConfig
from diffusion_core.schedule import NoiseSchedule
from tests.bench.bench_train import prepare
from tests.bench.synthetic import Rows, write
from workflows.config.schema import TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.train.batches import CachedBatches, Share, TrainBatch
from workflows.train.loop.trainer import Trainer
from workflows.train.objectives import DenoiserObjective
from workflows.train.order import Order

RESULTS = Path(__file__).parent / "results" / "ingest.md"
WORKER = Path(__file__).with_name("ingest_worker.py")
WHOLE, NARROW = Rows(width=768, side=64), Rows(width=192, side=20)
DELAY = 0.02


def worker(folder: Path, steps: int, **options: Any) -> subprocess.Popen[str]:
    """Starts `ingest_worker.py`."""
    asked = json.dumps({"folder": str(folder), "steps": steps, **options})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(WORKER), asked], stdout=subprocess.PIPE, text=True, env=environment)


def told(process: subprocess.Popen[str]) -> dict[str, float]:
    """Waits for the worker, and reads the figures that it printed."""
    out, _ = process.communicate()
    assert process.returncode == 0
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def cold(folder: Path) -> None:
    """Takes the files out of the page cache."""
    for path in folder.rglob("*.arrow"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(root: Path) -> list[str]:
    """USS at growing numbers of rows; each cache is removed before the next one is written."""
    lines, narrow = [], []
    for count, rows in ((20_000, WHOLE), (200_000, WHOLE), (200_000, NARROW), (2_000_000, NARROW)):
        folder = write(root / f"rows-{count}", count, rows)
        found = [told(worker(folder, 400, jump=True)) for _ in range(3)]
        grown = statistics.median(one["highest"] - one["before"] for one in found)
        first = statistics.median(one["first"] for one in found)
        narrow += [grown] if rows is NARROW else []
        size = sum(path.stat().st_size for path in folder.rglob("*.arrow")) / 1e9
        name = f"{count:,} rows of {size / count * 1e6:.0f} KB, {size:.0f} GB"
        lines.append(f"| {name}: USS beyond the imports, MiB | {grown:.0f} | <= 1536 |")
        lines.append(f"| the same: seconds until the first batch | {first:.2f} | <= 10 |")
        shutil.rmtree(folder)
    lines.append(f"| growth of USS from 200 thousand to 2 million | {narrow[1] / narrow[0] - 1:+.1%} | <= 5% |")
    return lines


class InMemory:
    """All rows in memory, as training did before; the rows of a batch are the same."""

    def __init__(self, batches: CachedBatches, cache: EmbeddingCache) -> None:
        self.num_tokens, self._batches = batches.num_tokens, batches
        count = cache.num_samples("train")
        rows = cache.batch("train", range(count))
        tokens, mask, pooled = cache.captions.take(torch.arange(len(cache.captions)))
        every = {"images": cache.images("train", range(count)), "rows": rows}
        reader = batches._reader
        reader._cache = _Held(cache, every, (tokens, mask, pooled))  # type: ignore[assignment]

    def read(self, samples_seen: int, part: int, share: Share) -> TrainBatch:
        """Reads a batch as `Batches.read` does, from memory."""
        return self._batches.read(samples_seen, part, share)


class _Held:
    """The part of a cache that a reader asks, from tensors."""

    def __init__(self, cache: EmbeddingCache, every: dict[str, Any], captions: tuple[torch.Tensor, ...]) -> None:
        self._cache, self._every, self.captions = cache, every, self
        self._captions = captions
        self.to_x0 = cache.to_x0

    def batch(self, _: str, rows: torch.Tensor) -> Any:
        every = self._every["rows"]
        return type(every)(every.sample_ids[rows], every.captions[rows], every.num_captions[rows], every.labels[rows])

    def images(self, _: str, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._every["images"][rows]
        return found

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part[rows] for part in self._captions)

    def pooled(self, rows: torch.Tensor) -> torch.Tensor:
        return self._captions[2][rows]


def trainer(objective: DenoiserObjective, cache: EmbeddingCache, config: TrainConfig, *, held: bool) -> Trainer:
    """A worker of its own, on rows of the cache or on rows in memory."""
    torch.manual_seed(0)
    found = Trainer(objective, config, cache.folder, torch.device("cpu"))
    if held:
        from workflows.train.loop.read_ahead import ReadAhead

        found._ahead = ReadAhead(InMemory(found.batches, cache), config, found.share)  # type: ignore[arg-type]
    return found


def rate(found: Trainer, steps: int) -> tuple[float, float]:
    """Steps per second, and the share of waiting for data, after a few steps."""
    for _ in range(3):
        found.step()
    found.figures.take()
    started = time.perf_counter()
    for _ in range(steps):
        found.step()
    seconds = time.perf_counter() - started
    return steps / seconds, found.figures.take()["data_wait"]


def paired(make: Callable[[bool], Trainer], steps: int, rounds: int = 5) -> tuple[float, float]:
    """Median over pairs of the rate from the cache over that from memory, and of the wait of the former."""
    mapped, held = make(False), make(True)
    pairs = [(rate(mapped, steps), rate(held, steps)) for _ in range(rounds)]
    return statistics.median(a[0] / b[0] for a, b in pairs), statistics.median(a[1] for a, _ in pairs)


def sd_objective() -> DenoiserObjective:
    """A small transformer over rows of Stable Diffusion's shape."""
    config = DiTConfig((4, 64, 64), patch=4, width=192, depth=4, num_heads=4, token_dim=768, pooled_dim=64)
    return DenoiserObjective(config, NoiseSchedule.cosine(1000), "v", "simple")


def config_of(batch_size: int, **values: object) -> TrainConfig:
    """One worker, one thread."""
    common = {"num_workers": 1, "sharding": "ddp", "precision": "fp32", "warmup_steps": 10, "steps": 1 << 30}
    return TrainConfig(**{**common, "batch_size": batch_size, **values})


def speed(root: Path) -> list[str]:
    """Training from the cache against training from memory."""
    (root / "demo").mkdir()
    objective, cache = prepare(root / "demo")
    ratio, wait = paired(lambda held: trainer(objective, cache, config_of(32), held=held), 60)
    lines = [
        f"| demo network: steps/s of rows in memory | {ratio:.3f}x | >= 0.97x |",
        f"| demo network: waiting for data | {wait:.2%} | <= 1% |",
    ]
    cache = EmbeddingCache.open(write(root / "sd", 4000, WHOLE))
    ratio, wait = paired(lambda held: trainer(sd_objective(), cache, config_of(16), held=held), 10, 3)
    lines.append(f"| rows of 152 KB: steps/s of rows in memory | {ratio:.3f}x | >= 0.97x |")
    folder = write(root / "sd-many", 40_000, WHOLE)
    cold(folder)
    _, wait = rate(trainer(sd_objective(), EmbeddingCache.open(folder), config_of(16), held=False), 30)
    return [*lines, f"| rows of 152 KB from a disk that has read none of them: waiting for data | {wait:.2%} | <= 2% |"]


def store(root: Path) -> list[str]:
    """Training through an S3 server that waits before each answer, and what two workers fetch together."""
    from tests.bench.slow_bucket import slow_bucket

    folder = write(root / "small", 6000, WHOLE)
    with slow_bucket(folder, root / "remote", DELAY) as bucket:
        cache = EmbeddingCache.open(root / "remote")
        config = config_of(16, cache_folder=root / "copies", shuffle_rows=1024)
        found = trainer(sd_objective(), cache, config, held=False)
        _, wait = rate(found, 120)
        lines = [f"| the same through S3 with 20 ms a request: waiting for data | {wait:.2%} | <= 5% |"]
        shutil.rmtree(root / "copies")
        bucket.requests.clear()
        options = {"copies": str(root / "copies"), "train": {"shuffle_rows": 1024}, "workers": 2}
        for process in [worker(root / "remote", 60, rank=rank, **options) for rank in range(2)]:
            told(process)
        most = max(bucket.requests.values())
        lines.append(f"| two workers of a node: most fetches of one shard | {most} | 1 |")
    folder = write(root / "shared", 30_000, WHOLE)
    cold(folder)
    alone = told(worker(folder, 300, workers=2, rank=0))["disk"]
    cold(folder)
    both = sum(told(process)["disk"] for process in [worker(folder, 300, workers=2, rank=rank) for rank in range(2)])
    lines.append(
        f"| two workers of a node that read the same rows' shards: bytes from the disk | {both / alone:.2f}x of one | |"
    )
    return lines


def formats(root: Path) -> list[str]:
    """Batches of 64 random rows of a window of 4,096: rows per second."""
    import lance
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write(root / "formats", 4096, WHOLE)
    cache = EmbeddingCache.open(folder)
    table = pa.concat_tables([cache.reader.opened.open(s).table() for s in cache.reader.shards("train/images")])
    flat = pa.FixedSizeListArray.from_arrays(
        pa.concat_arrays([chunk.storage.values for chunk in table["image"].chunks]), 4 * 2 * 64 * 64
    )
    plain = pa.table({"sample_id": table["sample_id"], "image": flat})
    lance.write_dataset(plain, root / "rows.lance")
    pq.write_table(plain, root / "rows.parquet", row_group_size=256, compression="none")
    dataset, parquet = lance.dataset(root / "rows.lance"), pq.ParquetFile(root / "rows.parquet")

    def read_parquet(rows: np.ndarray) -> None:
        for group in np.unique(rows // 256):
            parquet.read_row_group(int(group), columns=["image"])

    arms: dict[str, Callable[[np.ndarray], object]] = {
        "Arrow, mapped, each row checked": lambda rows: cache.images("train", rows),
        "Lance, `take`": lambda rows: dataset.take(rows.tolist(), columns=["image"]),
        "Parquet, row groups of 256": read_parquet,
    }
    rng, found = np.random.default_rng(0), {name: list[float]() for name in arms}
    for _ in range(15):
        rows = rng.permutation(4096)[:64]
        for name, read in arms.items():
            started = time.perf_counter()
            read(rows)
            found[name].append(64 / (time.perf_counter() - started))
    return [
        f"| rows of 131 KB per second: {name} | {statistics.median(rates):,.0f} | |" for name, rates in found.items()
    ]


def mixing(_: Path) -> list[str]:
    """A million rows, sorted by a thousand classes, in shards of 512; windows as by default."""
    count, classes = 1 << 20, 1024
    default = TrainConfig.model_fields["shuffle_rows"].default
    order = Order(0, count, 512, default)
    parts: list[np.ndarray] = []
    while (place := sum(map(len, parts))) < count:
        parts.append(order.stretch(0, place, count))
    arms = {
        f"windows of {default:,}": np.concatenate(parts),
        "a permutation": np.random.default_rng(0).permutation(count),
        "as they come": np.arange(count),
    }
    lines = []
    for name, rows in arms.items():
        seen = np.mean([len(np.unique(batch)) for batch in (rows * classes // count).reshape(-1, 256)])
        places = np.argsort(rows)
        apart = np.median(np.abs(np.diff(places)))
        lines.append(
            f"| {name}: classes in a batch of 256; steps between neighbours | {seen:.0f}; {apart / 256:,.0f} | |"
        )
    return lines


PARTS = {"memory": memory, "speed": speed, "store": store, "mixing": mixing, "formats": formats}


def main() -> None:
    """Runs the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    chosen = parser.parse_args().parts or list(PARTS)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29571", rank=0, world_size=1)
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="ingest-") as root:
            lines = PARTS[name](Path(root))
        print("\n".join(lines), flush=True)
        keep(name, lines)


def keep(name: str, lines: list[str]) -> None:
    """Replaces a part of the results."""
    title = f"## {name}"
    text = RESULTS.read_text() if RESULTS.exists() else "# Training data\n"
    head, *parts = text.split("\n## ")
    found = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}
    run = f"`python tests/bench/bench_ingest.py {name}`, torch {torch.__version__}, 1 thread"
    found[name] = "\n".join([run, "", "| | found | wanted |", "| --- | ---: | ---: |", *lines])
    RESULTS.write_text("\n\n".join([head.strip(), *(f"## {part}\n\n{body}" for part, body in found.items())]) + "\n")
    assert title in RESULTS.read_text()


if __name__ == "__main__":
    main()
