"""A process that reads batches as a training worker does: `python ingest_worker.py '{"folder": ..., "steps": ...}'`.

It prints one line of JSON: seconds until the first batch, rows per second, its memory (USS, MiB) before the cache is
opened, and at its highest. With `jump`, every batch starts at another place of the epoch, so that all of it is visited.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from workflows.config.schema import TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.storage.copies import CopySettings
from workflows.train.batches import CachedBatches, Share
from workflows.train.loop.read_ahead import ReadAhead


def uss() -> float:
    """MiB that this process has for itself."""
    return float(psutil.Process().memory_full_info().uss) / (1 << 20)


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Reads batches; see the module."""
    torch.set_num_threads(1)
    steps, size = int(asked["steps"]), int(asked.get("batch_size", 64))
    config = TrainConfig(batch_size=size, steps=1 << 40, cache_folder=asked.get("copies"), **asked.get("train", {}))
    before, started = uss(), time.perf_counter()
    cache = EmbeddingCache.open(Path(asked["folder"]), CopySettings(config.cache_folder, config.cache_bytes))
    share = Share(asked.get("rank", 0), asked.get("workers", 1))
    batches = CachedBatches(cache, 1000, config, torch.device("cpu"))
    ahead = ReadAhead(batches, config, share)
    ahead.read(0, 0)
    first, highest, stride = time.perf_counter() - started, uss(), cache.num_samples("train") // steps
    began = time.perf_counter()
    for step in range(1, steps):
        ahead.read(step * (max(stride, size) if asked.get("jump") else size), 0)
        if step % 10 == 0:
            highest = max(highest, uss())
    seconds = time.perf_counter() - began
    return {
        "first": first,
        "rows_per_second": (steps - 1) * size / share.size / seconds,
        "before": before,
        "highest": max(highest, uss()),
        "disk": psutil.Process().io_counters().read_bytes,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
