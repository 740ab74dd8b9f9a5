"""A diffusers scheduler's configuration, read: its noise schedule, what is predicted, and how it samples.

diffusers itself fills in what a configuration leaves out, so that a checkpoint means here what it means there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffusion_core.prediction import Parameterization
from diffusion_core.schedule import NoiseSchedule
from workflows.errors import InvalidCheckpoint
from workflows.model.sampling import Sampling, Visits, checkpoint_schedule

_PREDICTS: Final[dict[str, Parameterization]] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_SAMPLERS: Final = {
    "DDPMScheduler": "ddpm",
    "DPMSolverMultistepScheduler": "dpm_solver",
    "DPMSolverSinglestepScheduler": "dpm_solver",
}
_PRESERVING: Final = (
    *(
        "DDIM",
        "DDIMParallel",
        "DDPM",
        "DDPMParallel",
        "PNDM",
        "LMSDiscrete",
        "LCM",
        "TCD",
        "SASolver",
        "UniPCMultistep",
    ),
    *("DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE", "DPMSolverSinglestep", "EulerDiscrete"),
    *("EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
)
"""Schedulers whose noised row keeps its variance: `sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`."""
_VARIANCES: Final = {"fixed_large": "beta", "fixed_large_log": "beta", "learned_range": "learned_range"}
# Options of DPM-Solver++ that have no counterpart here, with the values that do.
_ONLY: Final = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "solver_order": 2,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "thresholding": False,
}


class ReadScheduler(NamedTuple):
    """What a scheduler's configuration says.

    Attributes:
        schedule: its table.
        parameterization: what the network predicts.
        sampling: its conventions.
        differences: options that pictures here do not follow, as sentences.
    """

    schedule: NoiseSchedule
    parameterization: Parameterization
    sampling: Sampling
    differences: list[str]


def read_scheduler(values: Mapping[str, Any], *, latent: bool, learned_variance: bool = False) -> ReadScheduler:
    """Reads a `scheduler_config.json`.

    Args:
        values: the file.
        latent: whether x0 is a latent, which is never clipped.
        learned_variance: whether the network predicts its variance.

    Raises:
        InvalidCheckpoint: an unknown prediction type or beta schedule, or noise that does not preserve the variance.
    """
    name = str(values.get("_class_name", "DDIMScheduler"))
    if name.removesuffix("Scheduler") not in _PRESERVING or values.get("use_flow_sigmas"):
        raise InvalidCheckpoint(
            f"the scheduler is a {name}{' with use_flow_sigmas' * bool(values.get('use_flow_sigmas'))}, whose noise is "
            "not known here: wanted one that preserves the variance, such as DDIM, DPM-Solver++ or Euler"
        )
    predicts = values.get("prediction_type", "epsilon")
    if predicts not in _PREDICTS:
        raise InvalidCheckpoint(f"prediction_type {predicts!r} of the scheduler: wanted one of {sorted(_PREDICTS)}")
    try:
        one, chain = DDIMScheduler.from_config(dict(values)), DDPMScheduler.from_config(dict(values))
        multi = DPMSolverMultistepScheduler.from_config(_usable(values))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"the scheduler's configuration cannot be used: {error}") from None
    parameterization = _PREDICTS[predicts]
    zero = bool(one.config.rescale_betas_zero_snr)
    schedule = checkpoint_schedule(one.alphas_cumprod, zero, parameterization != "eps")
    kind = _SAMPLERS.get(str(values.get("_class_name")), "ddim")
    clip = float(one.config.clip_sample_range) if one.config.clip_sample and not latent else 0.0
    variance = _VARIANCES.get(str(chain.config.variance_type), "posterior")
    sampling = Sampling(
        num_times=int(one.config.num_train_timesteps),
        zero_terminal=zero and parameterization != "eps",
        ddim=Visits(one.config.timestep_spacing, int(one.config.steps_offset), bool(one.config.set_alpha_to_one)),
        ddpm=Visits(chain.config.timestep_spacing, int(chain.config.steps_offset)),
        dpm_solver=_multistep(multi),
        default=kind,
        clip=clip,
        variance="learned_range" if learned_variance else variance,  # type: ignore[arg-type]
    )
    return ReadScheduler(schedule, parameterization, sampling, _differences(values, clip, kind))


def _multistep(scheduler: Any) -> Visits:
    config, times = scheduler.config, int(scheduler.config.num_train_timesteps)
    clipped = int(torch.searchsorted(torch.flip(scheduler.lambda_t, [0]), config.lambda_min_clipped))
    to_clean = config.final_sigmas_type != "sigma_min"
    first = to_clean or config.euler_at_final
    order = 1 if first else 0 if config.lower_order_final else 2
    return Visits(config.timestep_spacing, int(config.steps_offset), to_clean, order, times - clipped)  # type: ignore[arg-type]


def _usable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the options that have no counterpart: they are told, not followed."""
    return {name: value for name, value in values.items() if name not in _ONLY}


def _acts(option: str, scheduler: str, kind: str) -> bool:
    """Whether an option that is not followed would change the pictures of this scheduler."""
    if option in ("algorithm_type", "solver_type", "solver_order"):
        return kind == "dpm_solver"
    return option == "thresholding" or scheduler not in ("DDIMScheduler", "DDPMScheduler")


def _differences(values: Mapping[str, Any], clip: float, kind: str) -> list[str]:
    found = [
        f"{name} = {values[name]!r} of the scheduler has no counterpart: {wanted!r} is used"
        for name, wanted in _ONLY.items()
        if name in values and values[name] != wanted and _acts(name, str(values.get("_class_name")), kind)
    ]
    if clip and kind == "ddim":
        found.append("where DDIM clips x0, eps follows it here (diffusers keeps the network's eps)")
    known = {"DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"}
    if (name := str(values.get("_class_name"))) not in known:
        found.append(f"{name} has no counterpart: {kind} on its schedule is the default sampler")
    return found
