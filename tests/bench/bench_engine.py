"""Step-level batching without HTTP or Ray: the same requests through the engine, in lockstep batches, one at a time.

    python tests/bench/bench_engine.py [--device cuda]

The load is that of `bench_serve.py`. The three take turns over portions of it, on one thread, so that the machine's
moods hit all alike; medians of the portions' ratios are what counts. Writes `tests/bench/results/engine.md`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from diffusion_core.engine import StepEngine  # noqa: E402
from diffusion_core.trajectory import Trajectory, run  # noqa: E402
from tests.bench.bench_serve import BATCH, RESULTS, menu_of, requests, write_package  # noqa: E402
from workflows.model import ModelPackage  # noqa: E402
from workflows.serve.order import take_order  # noqa: E402
from workflows.serve.rows import trajectories  # noqa: E402
from workflows.serve.schema import GenerationRequest  # noqa: E402
from workflows.serve.warming import buckets_of, warm  # noqa: E402


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--portions", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3 * BATCH, help="per portion")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        package = ModelPackage.load(write_package(Path(name)), options.device, buckets=buckets_of(BATCH))
    warm(package, buckets_of(BATCH))
    menu = menu_of(package)

    def rows_of(seed: int) -> list[Trajectory]:
        rows = []
        for body in requests(options.requests, seed):
            order = take_order(GenerationRequest.model_validate(body), menu)
            rows += trajectories(package, order, [package.clip.text.encode([text]) for text in order.texts])
        return rows

    def ours(rows: list[Trajectory]) -> None:
        """A closed loop of 32: whoever is done makes room for the next."""
        engine, waiting = StepEngine(package.denoiser, package.shape, max_rows=BATCH), list(reversed(rows))
        while waiting or len(engine):
            while waiting and len(engine) < BATCH:
                engine.submit(waiting.pop())
            engine.tick()

    def lockstep(rows: list[Trajectory]) -> None:
        for start in range(0, len(rows), BATCH):
            run(package.denoiser, rows[start : start + BATCH])

    def single(rows: list[Trajectory]) -> None:
        for row in rows:
            run(package.denoiser, [row])

    arms: dict[str, Callable[[list[Trajectory]], None]] = {"ours": ours, "lockstep": lockstep, "single": single}
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for portion in range(options.portions):
        rows = rows_of(portion)
        for arm, work in arms.items():
            found[arm].append(timed(lambda work=work, rows=rows: work(rows)))  # type: ignore[misc]
        print({arm: round(times[-1], 2) for arm, times in found.items()}, flush=True)

    def ratio(arm: str) -> float:
        return statistics.median(other / own for other, own in zip(found[arm], found["ours"], strict=True))

    rates = {arm: options.requests / statistics.median(times) for arm, times in found.items()}
    device = torch.cuda.get_device_name() if options.device == "cuda" else "one CPU thread"
    text = "\n".join(
        [
            "# The engine without HTTP",
            "",
            f"`python {' '.join(sys.argv)}` on {device}, torch {torch.__version__}; {options.portions} portions of",
            f"{options.requests} requests of 10 to 100 steps, half classifier-free, 15% classifier-guided.",
            "",
            "| | pictures/s | ours is faster by |",
            "|---|---|---|",
            f"| raverse | {rates['ours']:.2f} | |",
            f"| batches of {BATCH} in lockstep | {rates['lockstep']:.2f} | {ratio('lockstep'):.2f}x |",
            f"| one at a time | {rates['single']:.2f} | {ratio('single'):.2f}x |",
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
