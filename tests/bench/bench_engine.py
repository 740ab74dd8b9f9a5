"""Step-level batching without HTTP or Ray: the same requests through the engine, in lockstep batches, one at a time.

    python tests/bench/bench_engine.py [--device cuda]

The load is that of `bench_serve.py`. The arms take turns over portions of it, on one thread; medians of the portions'
ratios are what counts. A batch in lockstep begins together and takes no new rows, but drops those that are done. On a
CPU the clock is the thread's own, which stands still while other processes have the core. A second table says what a
step costs beside the network: guidance, the step's formula, and the engine. Writes `tests/bench/results/engine.md`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from diffusion_core.denoiser import NetworkDenoiser  # noqa: E402
from diffusion_core.engine import StepEngine  # noqa: E402
from diffusion_core.row import Trajectory  # noqa: E402
from diffusion_core.trajectory import run  # noqa: E402
from tests.bench.serve_arms import BATCH, write_package  # noqa: E402
from tests.bench.serve_load import requests  # noqa: E402
from workflows.model.model import ModelPackage  # noqa: E402
from workflows.serve.replica.warming import buckets_of, padding_of, warm  # noqa: E402

RESULTS = Path(__file__).parent / "results"
TICKS = 40


def clock(package: ModelPackage) -> float:
    """Seconds: of this thread's work on a CPU, of the wall on a GPU."""
    if package.device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def row_of(package: ModelPackage, body: dict[str, Any]) -> Trajectory:
    """A request as a row."""
    plan = package.plan(body["sampler"], body["num_inference_steps"])
    condition = package.condition([body["prompt"]], body["guidance"])
    return Trajectory.start(plan, condition, seed=body["seed"], shape=package.shape, device=package.device)


def ours(package: ModelPackage, rows: list[Trajectory]) -> None:
    """A closed loop of 32: whoever is done makes room for the next."""
    engine, waiting = StepEngine(package.denoiser, package.shape, max_rows=BATCH), list(reversed(rows))
    while waiting or len(engine):
        while waiting and len(engine) < BATCH:
            engine.submit(waiting.pop())
        engine.tick()


def lockstep(package: ModelPackage, rows: list[Trajectory]) -> None:
    """Batches of 32 from start to end."""
    for start in range(0, len(rows), BATCH):
        run(package.denoiser, rows[start : start + BATCH])


def single(package: ModelPackage, rows: list[Trajectory]) -> None:
    """One row after the other."""
    for row in rows:
        run(package.denoiser, [row])


ARMS: dict[str, Callable[[ModelPackage, list[Trajectory]], None]] = {
    "ours": ours,
    "lockstep": lockstep,
    "single": single,
}


def compare(package: ModelPackage, portions: int, count: int) -> dict[str, list[float]]:
    """Seconds of each arm by portion."""
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for portion in range(portions):
        rows = [row_of(package, body) for body in requests(count, portion)]
        for arm, work in ARMS.items():
            started = clock(package)
            work(package, rows)
            found[arm].append(clock(package) - started)
        print({arm: round(times[-1], 2) for arm, times in found.items()}, flush=True)
    return found


def beside_network(package: ModelPackage) -> Iterator[str]:
    """What a step takes, of that in the network, at several numbers of rows."""
    inner: Any = package.denoiser
    while not isinstance(inner, NetworkDenoiser):
        inner = inner.denoiser
    network, spent = inner.network, []

    def timed(*arguments: Any) -> Any:
        started = clock(package)
        output = network(*arguments)
        spent.append(clock(package) - started)
        return output

    inner.network = timed
    for name, kinds in (("direct", ["direct"]), ("half classifier-free", ["direct", "classifier_free"])):
        for count in (1, 8, 16, 32):
            engine = StepEngine(package.denoiser, package.shape, max_rows=BATCH)
            for number, body in enumerate(requests(count, seed=0)):
                changes = {"guidance": kinds[number % len(kinds)], "num_inference_steps": 2 * TICKS}
                engine.submit(row_of(package, body | changes))
            whole, inside = [], []
            for _ in range(TICKS):
                spent.clear()
                started = clock(package)
                engine.tick()
                whole.append(clock(package) - started)
                inside.append(sum(spent))
            share = statistics.median(a / b - 1.0 for a, b in zip(whole, inside, strict=True))
            step, net = (f"{1000 * statistics.median(times):.2f}" for times in (whole, inside))
            yield f"| {name} | {count} | {step} | {net} | {100 * share:.0f}% |"
    inner.network = network


def table(package: ModelPackage, found: dict[str, list[float]], count: int) -> str:
    """The figures as Markdown."""

    def faster(arm: str) -> str:
        ratios = [other / own for other, own in zip(found[arm], found["ours"], strict=True)]
        return f"{statistics.median(ratios):.2f}x ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"

    rates = {arm: count / statistics.median(times) for arm, times in found.items()}
    device = torch.cuda.get_device_name() if package.device.type == "cuda" else "one CPU thread, its own time"
    return "\n".join(
        [
            "# The engine without HTTP",
            "",
            f"`python {' '.join(sys.argv)}` on {device}, torch {torch.__version__}; {len(found['ours'])} portions of",
            f"{count} requests of 10 to 100 steps, half classifier-free, 15% classifier-guided.",
            "",
            "| | pictures/s | ours is faster by (each portion) |",
            "|---|---|---|",
            f"| raverse | {rates['ours']:.2f} | |",
            f"| in lockstep, {BATCH} that drop finished rows | {rates['lockstep']:.2f} | {faster('lockstep')} |",
            f"| one at a time | {rates['single']:.2f} | {faster('single')} |",
            "",
            "| guidance | rows | step, ms | of that in the network | beside it |",
            "|---|---|---|---|---|",
            *beside_network(package),
            "",
        ]
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--portions", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3 * BATCH, help="per portion")
    options = parser.parse_args()
    torch.set_num_threads(1)
    padding = padding_of(torch.device(options.device), buckets_of(BATCH))
    with tempfile.TemporaryDirectory() as name:
        package = ModelPackage.load(write_package(Path(name)), options.device, buckets=padding)
    warm(package, buckets_of(BATCH))
    text = table(package, compare(package, options.portions, options.requests), options.requests)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engine.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
