"""What a step costs beside the network: `python tests/bench/bench_step.py [--rows 1 8 64]`.

One thread, the demo DiT (3 x 32 x 32, patch 4, width 192, 4 blocks), fp32. For each number of rows it times, in
turns within one run, the network's forward, the step with the network taken out (prediction, table, noise,
bookkeeping), and whole DDIM and DDPM loops of ours and of diffusers over the same network. Medians; the ratios are
what counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import diffusers
import torch

from diffusion_core import spacing
from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.networks import DiT, DiTConfig
from diffusion_core.prediction import Prediction
from diffusion_core.row import Trajectory, advance
from diffusion_core.sampler import SamplerPlan, ddim, ddpm
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import sample

SHAPE, NUM_STEPS = (3, 32, 32), 10


def timed(run: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Times each in turn, so that the machine's moods hit all alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(timed(run))
    return {name: statistics.median(values[1:]) for name, values in found.items()}


class Frozen:
    """The network taken out: it returns what it was given."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output

    def __call__(self, x: torch.Tensor, level: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        return self.output


def diffusers_loop(network: DiT, scheduler: diffusers.SchedulerMixin, rows: int) -> torch.Tensor:
    """The loop that diffusers' own pipelines run."""
    scheduler.set_timesteps(NUM_STEPS)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *SHAPE, generator=generator)
    for timestep in scheduler.timesteps:
        level = torch.full((rows,), float(timestep) + 1)
        x = scheduler.step(network(x, level, None), timestep, x, generator=generator).prev_sample
    return x


def one_size(network: DiT, rows: int, repeats: int) -> dict[str, float]:
    """All figures for one number of rows."""
    schedule = NoiseSchedule.linear()
    levels = spacing.trailing(schedule, NUM_STEPS)
    plans = {"ddim": ddim(schedule, levels), "ddpm": ddpm(schedule, levels)}
    x, level = torch.randn(rows, *SHAPE), torch.full((rows,), 500.0)
    frozen = NetworkDenoiser(Frozen(torch.randn(rows, *SHAPE)), schedule, "v")
    denoiser = NetworkDenoiser(network, schedule, "v")

    def stepping(make: Callable[..., SamplerPlan]) -> Callable[[], None]:
        """Makes the next step of the same rows at every call, as an engine does."""
        plan = make(schedule, spacing.trailing(schedule, 1000))
        state = [Trajectory.start(plan, None, seed=i, shape=SHAPE) for i in range(rows)]
        nothing = Condition.null(rows)

        def one_step() -> None:
            state[:] = advance(frozen, state, nothing)

        return one_step

    steps = {"ddim": stepping(ddim), "ddpm": stepping(ddpm)}
    common = {
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    peers = {"ddim": diffusers.DDIMScheduler(**common), "ddpm": diffusers.DDPMScheduler(**common)}
    seeds = list(range(rows))
    with torch.no_grad():
        return medians(
            {
                "forward": lambda: network(x, level, None),
                "prediction": lambda: Prediction.from_v(x, x, torch.full((rows,), 0.5, dtype=torch.float64)),
                "step ddim": lambda: [steps["ddim"]() for _ in range(NUM_STEPS)],
                "step ddpm": lambda: [steps["ddpm"]() for _ in range(NUM_STEPS)],
                "ddim ours": lambda: sample(denoiser, plans["ddim"], seeds=seeds, shape=SHAPE),
                "ddim diffusers": lambda: diffusers_loop(network, peers["ddim"], rows),
                "ddpm ours": lambda: sample(denoiser, plans["ddpm"], seeds=seeds, shape=SHAPE),
                "ddpm diffusers": lambda: diffusers_loop(network, peers["ddpm"], rows),
            },
            repeats,
        )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = DiT(DiTConfig(SHAPE, patch=4, width=192, depth=4, num_heads=6)).eval()
    heads = [
        "rows",
        "forward ms",
        "DDIM step",
        "DDPM step",
        "DDIM loop / network",
        "diffusers",
        "DDPM loop / network",
        "diffusers",
    ]
    print("| " + " | ".join(heads) + " |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for rows in arguments.rows:
        ms = one_size(network, rows, arguments.repeats)
        network_ms = ms["forward"] * NUM_STEPS
        loops = [ms[name] / network_ms for name in ("ddim ours", "ddim diffusers", "ddpm ours", "ddpm diffusers")]
        steps = [ms[name] / network_ms for name in ("step ddim", "step ddpm")]
        cells = [
            f"{ms['forward']:.2f}",
            *(f"{100 * share:.2f}%" for share in steps),
            *(f"{ratio:.3f}" for ratio in loops),
        ]
        print(f"| {rows} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
