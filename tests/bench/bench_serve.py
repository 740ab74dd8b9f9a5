"""Ours against the same sampler behind `@serve.batch`, and against one request at a time.

All three are Serve applications of the same model, text encoder and HTTP front (`serve_arms`), one torch thread
each, warmed. The load is mixed: 10 to 100 steps, half of it classifier-free, some classifier-guided. The arms take
turns over several short rounds, so that the machine's moods hit all alike, and medians over the rounds count.
Saturation is a closed loop of 32 clients; 80% load is Poisson, at 80% of what `@serve.batch` reaches in the same
round; low load alternates between ours and one at a time, request by request.

    python tests/bench/bench_serve.py 2> serve.log

(where Ray's many lines go) writes `tests/bench/results/serve.md` and `serve.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import ray  # noqa: E402
import torch  # noqa: E402
from ray import serve  # noqa: E402
from rich.console import Console  # noqa: E402

from tests.bench.serve_arms import ARMS, BATCH, WAIT_SECONDS, deploy  # noqa: E402
from tests.bench.serve_load import Sent, in_turn, percentile, poisson, requests, saturate  # noqa: E402
from workflows.runtime.progress import Progress  # noqa: E402
from workflows.runtime.session import set_environment, start_ray, stop_ray  # noqa: E402
from workflows.serve.engine.load import EngineLoad  # noqa: E402

RESULTS = Path(__file__).parent / "results"
NAMES = {"ours": "raverse", "batch": "`@serve.batch`", "single": "one at a time"}
LOADED = ("ours", "batch")


@dataclass
class Measured:
    """By arm, one entry per round."""

    full: dict[str, list[Sent]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    high: dict[str, list[Sent]] = field(default_factory=lambda: {arm: [] for arm in LOADED})
    low: dict[str, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    def rate(self, arm: str) -> float:
        """Pictures a second at saturation, the median round's."""
        return statistics.median(sent.rate for sent in self.full[arm])

    def faster(self, arm: str) -> float:
        """By how much ours is faster at saturation, the median round's."""
        return statistics.median(a.rate / b.rate for a, b in zip(self.full["ours"], self.full[arm], strict=True))

    def latencies(self, arm: str) -> list[float]:
        """At 80% load, of all rounds."""
        return [one for sent in self.high[arm] for one in sent.latencies]


def measure(urls: dict[str, str], rounds: int, count: int, low: int, progress: Progress) -> Measured:
    """Warms every arm, then lets them take turns."""
    found, arms = Measured(), list(ARMS)
    for arm in arms:
        asyncio.run(saturate(urls[arm], requests(BATCH, seed=9)))
    progress.log("every arm has answered its first requests; now low load")
    pair = {arm: urls[arm] for arm in ("ours", "single")}
    found.low = asyncio.run(in_turn(pair, requests(low, seed=2)))
    for number in range(rounds):
        bodies = requests(count, seed=100 + number)
        for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
            before = busy()
            sent = asyncio.run(saturate(urls[arm], bodies))
            found.full[arm].append(sent)
            if arm == "ours":
                found.beside.append(sent.seconds / (busy() - before) - 1.0)
        found.rates.append(0.8 * found.full["batch"][-1].rate)
        for arm in LOADED[:: 1 if number % 2 == 0 else -1]:
            found.high[arm].append(asyncio.run(poisson(urls[arm], bodies, found.rates[-1], seed=number)))
        progress.log(f"round {number + 1}: " + ", ".join(f"{arm} {found.full[arm][-1].rate:.2f}/s" for arm in arms))
    return found


def busy() -> float:
    """Seconds that our engine has spent in steps."""
    load: EngineLoad = serve.get_deployment_handle("sampler", "ours").load.remote().result(timeout_s=60)
    return load.busy_seconds


def plot(found: Measured) -> None:
    """How long requests take at 80% load."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for arm in LOADED:
        times = sorted(found.latencies(arm))
        axes.plot(times, [(place + 1) / len(times) for place in range(len(times))], label=NAMES[arm].strip("`"))
    axes.set(xlabel="seconds until the picture", ylabel="share of requests", title="80% load", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "serve.png", dpi=120)


def table(found: Measured) -> str:
    """The figures, and what was wanted of them."""
    lines = [
        "# Serving: step-level batching against the alternatives",
        "",
        f"`python {' '.join(sys.argv)}` on {os.cpu_count()} CPU cores ({platform.machine()}) with torch",
        f"{torch.__version__} and ray {ray.__version__}; a DiT of 8x8 pictures (width 96, 3 blocks), float32, one",
        f"torch thread. 10 to 100 steps, half classifier-free, 15% classifier-guided; rounds: {len(found.rates)}, arms",
        f"in turn, medians. `@serve.batch` of {BATCH}, which waits {1000 * WAIT_SECONDS:.0f} ms for more.",
        "",
        "| | pictures/s at saturation | of each round | p50 at low load, s | p50 at 80% load, s | p99 at 80% load, s |",
        "|---|---|---|---|---|---|",
        *(_row(found, arm) for arm in ARMS),
        "",
        "| wanted | found |",
        "|---|---|",
        *(f"| {wanted} | {value} |" for wanted, value in _goals(found).items()),
        "",
        "80% load: of what `@serve.batch` reaches at saturation in the same round, the same for both. The rest of the",
        "service is all the time at saturation in which no step ran: HTTP, texts, pictures, and an engine that waits.",
        "",
        "![latencies](serve.png)",
        "",
    ]
    return "\n".join(lines)


def _row(found: Measured, arm: str) -> str:
    rounds = ", ".join(f"{sent.rate:.2f}" for sent in found.full[arm])
    p50 = f"{statistics.median(found.low[arm]):.3f}" if arm in found.low else "-"
    loaded = "- | -"
    if arm in LOADED:
        times = found.latencies(arm)
        loaded = f"{percentile(times, 0.5):.2f} | {percentile(times, 0.99):.2f}"
    return f"| {NAMES[arm]} | {found.rate(arm):.2f} | {rounds} | {p50} | {loaded} |"


def _goals(found: Measured) -> dict[str, str]:
    low = statistics.median(a / b for a, b in zip(found.low["ours"], found.low["single"], strict=True))
    tails = [percentile(found.latencies(arm), 0.99) for arm in LOADED]
    return {
        "saturation >= 1.5x of `@serve.batch`": f"{found.faster('batch'):.2f}x",
        "saturation >= 2x of one at a time": f"{found.faster('single'):.2f}x",
        "p50 at low load <= 1.05x of one at a time (median of the pairs)": f"{low:.3f}x",
        f"p99 at 80% load ({statistics.median(found.rates):.2f} requests/s) <= 0.5x of `@serve.batch`": (
            f"{tails[0] / tails[1]:.2f}x"
        ),
        "the rest of the service, of the engine's time at saturation": f"{100 * statistics.median(found.beside):.1f}%",
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3 * BATCH, help="per arm, load and round")
    parser.add_argument("--low", type=int, default=24, help="requests per arm at low load")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    set_environment()
    # Every replica of every arm computes on one thread, whatever Ray would give it.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        os.environ["HOME"] = name
        start_ray(num_cpus=len(ARMS))
        try:
            urls = deploy(Path(name))
            found = measure(urls, options.rounds, options.requests, options.low, Progress(Console()))
        finally:
            serve.shutdown()
            stop_ray()
    text = table(found)
    plot(found)
    (RESULTS / "serve.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
