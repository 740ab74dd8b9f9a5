"""An imported Stable Diffusion through the step engine, against its own pipeline one request at a time.

    python tests/bench/bench_interop.py [--device cuda] [--portions 3]

The pipeline has random weights, and is wide enough that one forward pass takes 20 ms on two cores. Both take turns
over the same requests: mixed steps, scales and negative prompts, and in the second load one request at a time. Medians
of the portions' ratios are what counts. Writes `tests/bench/results/interop.md`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from diffusion_core.engine import StepEngine  # noqa: E402
from diffusion_core.row import Trajectory  # noqa: E402
from tests.workflows.diffusers_io import pipelines  # noqa: E402
from workflows.diffusers_io.importing import import_pipeline  # noqa: E402
from workflows.model.model import ModelPackage  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "interop.md"
MAX_ROWS = 8
LEAST_SECONDS = 0.02


class Request(NamedTuple):
    """What a client asks for."""

    prompt: str
    steps: int
    scale: float
    negative: str | None
    seed: int


def requests(count: int, seed: int) -> list[Request]:
    """Mixed ones, the same for both."""
    chance = torch.Generator().manual_seed(seed)

    def one_of(*values: Any) -> Any:
        return values[int(torch.randint(0, len(values), (1,), generator=chance))]

    return [
        Request(f"picture {i} of a dog", one_of(5, 8, 12, 20), one_of(1.0, 5.0, 7.5), one_of(None, "ugly"), i)
        for i in range(count)
    ]


def start(package: ModelPackage, seed: int) -> Tensor:
    """The initial latents of a request."""
    return torch.randn(package.shape, generator=torch.Generator().manual_seed(seed)).to(package.device)


@torch.no_grad()
def by_pipeline(pipe: Any, package: ModelPackage, asked: Request) -> Tensor:
    """One request, as diffusers serves it; its pictures are decoded."""
    images: Tensor = pipe(
        asked.prompt,
        num_inference_steps=asked.steps,
        guidance_scale=asked.scale,
        negative_prompt=asked.negative if asked.scale > 1 else None,
        latents=start(package, asked.seed)[None],
        output_type="pt",
    ).images
    return images


def rows_of(package: ModelPackage, asked: Request) -> Trajectory:
    negative = [asked.negative] if asked.negative and asked.scale > 1 else None
    kind = "classifier_free" if asked.scale > 1 else "direct"
    condition = package.condition([asked.prompt], kind, negative_prompts=negative, guidance_scale=asked.scale)
    return Trajectory.start_at(
        package.plan("ddim", asked.steps), condition, start(package, asked.seed), seed=asked.seed
    )


@torch.no_grad()
def by_engine(package: ModelPackage, asked: list[Request]) -> list[Tensor]:
    """All requests in one engine; whoever is done makes room, and samples that end together are decoded together."""
    engine, waiting, found = StepEngine(package.denoiser, package.shape, max_rows=MAX_ROWS), asked[::-1], []
    while waiting or len(engine):
        while waiting and len(engine) < MAX_ROWS:
            engine.submit(rows_of(package, waiting.pop()))
        done = [outcome.x0 for outcome in engine.tick() if outcome.x0 is not None]
        if done:
            found += list(package.drawn(torch.stack(done)))
    return found


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def make(folder: Path, device: str, width: int) -> tuple[Any, ModelPackage, float]:
    """The pipeline, its package, and the seconds of one forward pass of a row and its negative."""
    pipe = pipelines.stable_diffusion(folder / "source", {}, side=16, widths=(width, 2 * width)).to(device)
    import_pipeline(folder / "source", folder / "package")
    package = ModelPackage.load(folder / "package", device)
    x, tokens = torch.zeros(2, *package.shape, device=device), torch.zeros(2, 77, 32, device=device)
    with torch.no_grad():
        seconds = min(timed(lambda: pipe.unet(x, 5, tokens)) for _ in range(5))
    return pipe, package, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--portions", type=int, default=3)
    parser.add_argument("--requests", type=int, default=12, help="per portion")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        pipe, package, forward = make(Path(name), options.device, options.width)
    if forward < LEAST_SECONDS and options.device == "cpu":
        print(f"one forward pass takes {1000 * forward:.1f} ms: give a larger --width")
    by_engine(package, requests(2, 99))
    by_pipeline(pipe, package, requests(1, 99)[0])
    mixed, low = [], []
    for portion in range(options.portions):
        asked = requests(options.requests, portion)
        theirs = timed(lambda asked=asked: [by_pipeline(pipe, package, one) for one in asked])  # type: ignore[misc]
        ours = timed(lambda asked=asked: by_engine(package, asked))  # type: ignore[misc]
        mixed.append((options.requests / theirs, options.requests / ours, theirs / ours))
        pairs = [
            (timed(lambda one=one: by_pipeline(pipe, package, one)), timed(lambda one=one: by_engine(package, [one])))  # type: ignore[misc]
            for one in asked[:4]
        ]
        low.append(statistics.median(own / other for other, own in pairs))
        print(f"throughput {mixed[-1][2]:.2f}x, latency alone {low[-1]:.3f}x", flush=True)
    write(options, forward, mixed, low)


def write(options: Any, forward: float, mixed: list[tuple[float, float, float]], low: list[float]) -> None:
    theirs, ours, ratio = (statistics.median(column) for column in zip(*mixed, strict=True))
    least = min(found[2] for found in mixed)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads"
    told = (
        f"`python {' '.join(sys.argv)}` on {device}, torch {torch.__version__}; one forward pass takes "
        f"{1000 * forward:.0f} ms; {options.portions} portions of {options.requests} requests of 5 to 20 steps, up to "
        f"{MAX_ROWS} at once."
    )
    lines = [
        "# An imported Stable Diffusion through the engine",
        "",
        told,
        "",
        "| | pipeline, one at a time | engine | ratio |",
        "|---|---|---|---|",
        f"| mixed requests, pictures/s | {theirs:.3f} | {ours:.3f} | {ratio:.2f}x (least {least:.2f}x) |",
        f"| seconds of one request alone | | | {statistics.median(low):.3f}x |",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
