"""Prints how samplers converge on mixtures of Gaussians, and draws one in the plane.

python -m diffusion_core.oracle [picture.png]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.guidance import ClassifierFreeGuidance
from diffusion_core.oracle import GaussianMixture, OracleDenoiser, energy_distance
from diffusion_core.sampler import SamplerPlan, ddim, ddpm, dpm_solver, step
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import trailing

STEPS = (10, 20, 50, 100, 200)
POINTS = 4000
GUIDANCE_SCALE = 3.0


def mixture_12d() -> GaussianMixture:
    """Four components in three classes, in 12 dimensions."""
    means = 0.5 * noise.normal(0, noise.ORACLE, 2, (4, 12), dtype=torch.float64)
    deviations = torch.tensor([0.5, 0.3, 0.4, 0.25], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64)
    return GaussianMixture(weights, means, deviations, torch.tensor([0, 0, 1, 2]))


def mixture_2d() -> GaussianMixture:
    """Nine components on a ring, in three classes that lie side by side."""
    angle = torch.arange(9, dtype=torch.float64) * (2.0 * torch.pi / 9.0)
    means = torch.stack([angle.cos(), angle.sin()], dim=1)
    ones = torch.ones(9, dtype=torch.float64)
    return GaussianMixture(ones / 9.0, means, 0.13 * ones, torch.arange(9) // 3)


def sampled(denoiser: Denoiser, plan: SamplerPlan, x: Tensor, condition: Condition | None = None) -> Tensor:
    """All rows of `x` through the whole plan, in step."""
    x0 = x
    for index, level in enumerate(plan.levels[:-1]):
        prediction = denoiser(x, torch.full((len(x),), level), condition)
        x, x0 = (
            step(plan, index, prediction, x0, noise.normal(1, noise.STEP, index, x.shape, dtype=x.dtype)),
            prediction.x0,
        )
    return x


def convergence(oracle: OracleDenoiser) -> dict[str, list[float]]:
    """Root mean square distance from the exact end of the probability flow, per sampler and number of steps."""
    schedule, shape = oracle.schedule, (64, *oracle.mixture.shape)
    start = noise.normal(0, noise.INITIAL, 0, shape, dtype=torch.float64)
    exact = oracle.mixture.ode_map(start, float(schedule.alpha_bar[-1]))
    samplers: dict[str, Callable[[NoiseSchedule, Sequence[int]], SamplerPlan]]
    samplers = {"DDIM": ddim, "DPM-Solver++(2M)": dpm_solver}
    return {
        name: [
            float((sampled(oracle, make(schedule, trailing(schedule, n)), start) - exact).square().mean().sqrt())
            for n in STEPS
        ]
        for name, make in samplers.items()
    }


def distances(oracle: OracleDenoiser) -> dict[str, float]:
    """Energy distance from true samples, per sampler."""
    schedule, mixture = oracle.schedule, oracle.mixture
    truth = mixture.sample(POINTS, seed=0)
    start = noise.normal(2, noise.INITIAL, 0, truth.shape, dtype=torch.float64)
    found = {"truth": energy_distance(mixture.sample(POINTS, seed=1), truth)}
    plans = {f"DDIM {n}": ddim(schedule, trailing(schedule, n)) for n in STEPS}
    plans["DDPM 1000"] = ddpm(schedule, trailing(schedule, 1000))
    return found | {name: energy_distance(sampled(oracle, plan, start), truth) for name, plan in plans.items()}


def panels(oracle: OracleDenoiser, count: int = 500) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Title of each panel, its points, and their classes where the sampler was told."""
    schedule, mixture = oracle.schedule, oracle.mixture
    label = torch.arange(3).repeat_interleave(count)
    start = noise.normal(3, noise.INITIAL, 0, (len(label), *mixture.shape), dtype=torch.float64)
    plan, asked = ddim(schedule, trailing(schedule, 50)), Condition.of(label=label)
    guided = ClassifierFreeGuidance(oracle, GUIDANCE_SCALE)
    return {
        "true": (torch.cat([mixture.sample(count, seed=4, label=one) for one in range(3)]), label),
        "DDPM, 1000 steps": (sampled(oracle, ddpm(schedule, trailing(schedule, 1000)), start), None),
        "DDIM, 50 steps": (sampled(oracle, plan, start), None),
        "DDIM, guided, w = 1": (sampled(oracle, plan, start, asked), label),
        f"DDIM, guided, w = {GUIDANCE_SCALE:g}": (sampled(guided, plan, start, asked), label),
    }


def draw(oracle: OracleDenoiser, file: Path) -> None:
    """Saves the panels side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    found = panels(oracle)
    figure, axes = pyplot.subplots(1, len(found), figsize=(3.2 * len(found), 3.4), layout="constrained")
    for axis, (title, (points, label)) in zip(axes, found.items(), strict=True):
        colours = "0.35" if label is None else [f"C{one}" for one in label.tolist()]
        axis.scatter(points[:, 0], points[:, 1], c=colours, s=3, linewidths=0)
        axis.set_title(title, fontsize="medium")
        axis.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal", xticks=[], yticks=[])
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def report(convergence_: dict[str, list[float]], distances_: dict[str, float]) -> str:
    """The two tables."""
    lines = ["RMS error against the exact end of the probability flow (12 dimensions, trailing spacing)"]
    lines += [f"{'steps':<18}" + "".join(f"{n:>10}" for n in STEPS)]
    lines += [f"{name:<18}" + "".join(f"{error:>10.5f}" for error in errors) for name, errors in convergence_.items()]
    lines += ["", f"Energy distance from true samples ({POINTS} points; `truth` is another true sample)"]
    lines += [f"{name:<18}{distance:>10.5f}" for name, distance in distances_.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Tables to the terminal, picture to the file."""
    file = Path(arguments[0] if arguments else "oracle.png")
    oracle = OracleDenoiser(mixture_12d(), NoiseSchedule.linear())
    sys.stdout.write(report(convergence(oracle), distances(oracle)) + "\n")
    draw(OracleDenoiser(mixture_2d(), NoiseSchedule.cosine()), file)
    sys.stdout.write(f"\nPicture written to {file}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
