"""Ours against the same sampler behind `@serve.batch`, and against one request at a time.

All three are Serve deployments of the same model, over the same HTTP front, in one run on one machine. The load is
mixed: 10 to 100 steps, half of it classifier-free, some classifier-guided. Low load and 80% load are Poisson;
saturation is a closed loop of 32 clients. Low load alternates between ours and one at a time, request by request.

    python tests/bench/bench_serve.py

writes `tests/bench/results/serve.md` and `serve.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
import torch
from ray import serve
from starlette.requests import Request

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from diffusion_core.trajectory import run  # noqa: E402
from tests.workflows.conftest import tiny_card, write_tiny_classifier, write_tiny_clip  # noqa: E402
from tests.workflows.serve.conftest import free_port, make_config, register_package  # noqa: E402
from workflows.model import ModelPackage  # noqa: E402
from workflows.serve.app import build  # noqa: E402
from workflows.serve.order import Menu, take_order  # noqa: E402
from workflows.serve.pictures import Generated, images_of  # noqa: E402
from workflows.serve.rows import previews_of, trajectories  # noqa: E402
from workflows.serve.schema import GenerationRequest  # noqa: E402
from workflows.serve.warming import buckets_of, warm  # noqa: E402
from workflows.session import set_environment, start_ray, stop_ray  # noqa: E402

RESULTS = Path(__file__).parent / "results"
BATCH, CLIENTS = 32, 32
ARMS = ("ours", "batch", "single")
NAMES = {"ours": "raverse", "batch": "`@serve.batch`", "single": "one at a time"}


def write_package(folder: Path) -> Path:
    """The digits' sizes (8x8, width 96, 3 blocks), random weights."""
    from diffusion_core.bundle import ModelBundle
    from diffusion_core.networks import DiT, DiTConfig
    from diffusion_core.schedule import NoiseSchedule

    config = DiTConfig((1, 8, 8), patch=2, width=96, depth=3, num_heads=4, token_dim=16, pooled_dim=16)
    torch.manual_seed(0)
    weights = {name: torch.randn_like(value) * 0.05 for name, value in DiT(config).state_dict().items()}
    schedule = NoiseSchedule.cosine(1000)
    ModelBundle.save(
        folder / "denoiser", config, weights, schedule=schedule, parameterization="v", clip={"model": "tiny"}
    )
    write_tiny_classifier(folder / "classifier", num_levels=1000)
    parts = {"denoiser": folder / "denoiser", "classifier": folder / "classifier"}
    ModelPackage.assemble(folder / "package", tiny_card(), clip=write_tiny_clip(folder / "clip"), **parts)
    return folder / "package"


class Baseline:
    """The same model and sampler, without step-level batching: a batch is denoised from start to end."""

    def __init__(self, package: str) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.package = ModelPackage.load(Path(package), buckets=buckets_of(BATCH))
        warm(self.package, buckets_of(BATCH))
        self.menu = menu_of(self.package)

    async def answer(self, request: Request) -> dict[str, Any]:
        """One request's picture."""
        order = take_order(GenerationRequest.model_validate(await request.json()), self.menu)
        return await self.draw(order)

    def make(self, orders: list[Any]) -> list[dict[str, Any]]:
        """Pictures of a batch, which ends when its longest member does."""
        rows = []
        for order in orders:
            texts = [self.package.clip.text.encode([text]) for text in order.texts]
            rows += trajectories(self.package, order, texts)
        samples = run(self.package.denoiser, rows)
        return [
            {
                "data": [
                    image.model_dump()
                    for image in images_of(Generated(order.settings, previews_of(self.package, [one])), "b64_json")
                ]
            }
            for order, one in zip(orders, samples, strict=True)
        ]


def menu_of(package: ModelPackage) -> Menu:
    """What the baselines offer: the same as ours."""
    defaults = package.defaults
    scales: dict[Any, float] = {
        "classifier_free": defaults.guidance_scale,
        "classifier": defaults.classifier_scale,
        "clip": defaults.clip_scale,
    }
    return Menu("tiny", "1", (8, 8), package.class_names, scales, 50, 1000)


@serve.deployment(name="batched", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Batched(Baseline):
    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0)
    async def draw(self, orders: list[Any]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.make, orders)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.answer(request)


@serve.deployment(name="single", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Single(Baseline):
    def __init__(self, package: str) -> None:
        super().__init__(package)
        self.turn = asyncio.Lock()

    async def draw(self, order: Any) -> dict[str, Any]:
        async with self.turn:
            return (await asyncio.to_thread(self.make, [order]))[0]

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.answer(request)


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """The mixed load."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        kind = draw.choices(("classifier_free", "direct", "classifier"), (0.5, 0.35, 0.15))[0]
        sampler = draw.choice(("ddim", "ddpm", "dpm_solver"))
        made.append(
            {
                "prompt": f"a handwritten {draw.choice(('one', 'two', 'three'))}",
                "guidance": kind,
                "sampler": sampler,
                "num_inference_steps": draw.randint(10, 100),
                "seed": number,
            }
        )
    return made


@dataclass
class Load:
    """What a load came to."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    response = await client.post(url, json=body)
    assert response.status_code == 200, response.text
    return time.perf_counter() - started


async def saturate(url: str, bodies: list[dict[str, Any]]) -> Load:
    """As fast as 32 clients go that never wait."""
    waiting, latencies = list(reversed(bodies)), []
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:

        async def one() -> None:
            while waiting:
                latencies.append(await ask(client, url, waiting.pop()))

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return Load(latencies, time.perf_counter() - started)


async def poisson(url: str, bodies: list[dict[str, Any]], rate: float) -> Load:
    """Requests at random times, whatever became of those before."""
    draw = random.Random(1)
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        started, asked = time.perf_counter(), []
        for body in bodies:
            asked.append(asyncio.create_task(ask(client, url, body)))
            await asyncio.sleep(draw.expovariate(rate))
        return Load(list(await asyncio.gather(*asked)), time.perf_counter() - started)


async def alternate(urls: dict[str, str], bodies: list[dict[str, Any]]) -> dict[str, Load]:
    """One request after the other, each of every arm in turn: low load."""
    found: dict[str, list[float]] = {arm: [] for arm in urls}
    async with httpx.AsyncClient(timeout=600) as client:
        for body in bodies:
            for arm, url in urls.items():
                found[arm].append(await ask(client, url, body))
    return {arm: Load(times, sum(times)) for arm, times in found.items()}


def deploy(folder: Path) -> dict[str, str]:
    """Starts the three arms, and says where each answers."""
    package, config = write_package(folder / "model"), make_config(folder / "registry")
    register_package(config, package)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = {
        "model": "tiny@champion",
        "tracking_uri": f"sqlite:///{config.root_folder / 'mlflow.db'}",
        "max_rows": BATCH,
        "max_waiting_rows": 4096,
        "max_waiting_seconds": 86400.0,
        "num_cpus": 0.0,
    }
    serve.run(build(args), name="ours", route_prefix="/ours")
    serve.run(Batched.bind(str(package)), name="batched", route_prefix="/batch")
    serve.run(Single.bind(str(package)), name="single", route_prefix="/single")
    base = f"http://127.0.0.1:{port}"
    return {"ours": f"{base}/ours/v1/images/generations", "batch": f"{base}/batch", "single": f"{base}/single"}


def overhead(folder: Path) -> float:
    """Share of a step beyond the guided network itself, at 16 rows in one process."""
    from diffusion_core.condition import Condition
    from diffusion_core.engine import StepEngine
    from diffusion_core.trajectory import Trajectory

    package = ModelPackage.load(folder / "model" / "package", buckets=buckets_of(BATCH))
    engine = StepEngine(package.denoiser, package.shape, max_rows=16)
    row = package.condition(["a handwritten one"])
    for seed in range(16):
        engine.submit(Trajectory.start(package.plan("ddim", 1000), row, seed=seed, shape=package.shape))
    x, level, rows = torch.randn(16, *package.shape), torch.full((16,), 500), Condition.cat([row] * 16)
    ticks, calls = [], []
    for _ in range(100):
        started = time.perf_counter()
        engine.tick()
        ticks.append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.no_grad():
            package.denoiser(x, level, rows)
        calls.append(time.perf_counter() - started)
    return statistics.median(ticks) / statistics.median(calls) - 1


def plot(at_load: dict[str, Load]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for arm, load in at_load.items():
        times = sorted(load.latencies)
        axes.plot(times, [(place + 1) / len(times) for place in range(len(times))], label=NAMES[arm].strip("`"))
    axes.set(xlabel="seconds until the picture", ylabel="share of requests", xscale="log", title="80% load")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "serve.png", dpi=120)


def table(full: dict[str, Load], low: dict[str, Load], high: dict[str, Load], rate: float, cost: float) -> str:
    lines = [
        "# Serving: step-level batching against the alternatives",
        "",
        f"`python {' '.join(sys.argv)}` on {os.cpu_count()} CPU cores ({platform.machine()})",
        f"with torch {torch.__version__} and ray {ray.__version__}; a DiT of 8x8 pictures (width 96, 3 blocks),",
        "10 to 100 steps, half classifier-free, 15% classifier-guided.",
        "",
        "| | pictures/s at saturation | p50 at low load, s | p50 at 80% load, s | p99 at 80% load, s |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        p50 = f"{low[arm].percentile(0.5):.3f}" if arm in low else "-"
        loaded = f"{high[arm].percentile(0.5):.2f} | {high[arm].percentile(0.99):.2f}" if arm in high else "- | -"
        lines.append(f"| {NAMES[arm]} | {full[arm].rate:.2f} | {p50} | {loaded} |")
    ratios = [low["ours"].latencies[i] / low["single"].latencies[i] for i in range(len(low["ours"].latencies))]
    tails = high["ours"].percentile(0.99) / high["batch"].percentile(0.99)
    lines += [
        "",
        "| wanted | found |",
        "|---|---|",
        f"| saturation >= 1.5x of `@serve.batch` | {full['ours'].rate / full['batch'].rate:.2f}x |",
        f"| saturation >= 2x of one at a time | {full['ours'].rate / full['single'].rate:.2f}x |",
        f"| p50 at low load <= 1.05x of one at a time (median of the pairs) | {statistics.median(ratios):.3f}x |",
        f"| p99 at 80% load ({rate:.2f} requests/s) <= 0.5x of `@serve.batch` | {tails:.2f}x |",
        f"| the engine's own share of a step at 16 rows <= 5% | {100 * cost:.1f}% |",
        "",
        "80% load: of what `@serve.batch` reaches at saturation, the same for both.",
        "",
        "![latencies](serve.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=96, help="per arm and load")
    parser.add_argument("--low", type=int, default=24, help="requests per arm at low load")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    set_environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HOME"] = name
        start_ray(num_cpus=2)
        try:
            urls = deploy(folder)
            bodies = requests(options.requests, seed=0)
            low = asyncio.run(alternate({arm: urls[arm] for arm in ("ours", "single")}, requests(options.low, seed=2)))
            full: dict[str, Load] = {}
            for arm in ARMS:
                asyncio.run(saturate(urls[arm], bodies[:CLIENTS]))
                full[arm] = asyncio.run(saturate(urls[arm], bodies))
                print(arm, f"{full[arm].rate:.2f}/s", flush=True)
            rate = 0.8 * full["batch"].rate
            high = {arm: asyncio.run(poisson(urls[arm], bodies, rate)) for arm in ("ours", "batch")}
        finally:
            serve.shutdown()
            stop_ray()
        cost = overhead(folder)
    text = table(full, low, high, rate, cost)
    plot(high)
    (RESULTS / "serve.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
