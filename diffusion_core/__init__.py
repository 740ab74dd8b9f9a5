"""The mathematics of diffusion models, exact and row by row: pure PyTorch.

    schedule = NoiseSchedule.cosine(1000)
    denoiser = NetworkDenoiser(network, schedule, parameterization="v")
    plan = ddim(schedule, trailing(schedule, 50))
    images = sample(denoiser, plan, seeds=[7, 8, 9], shape=(3, 32, 32))

Every public name can be imported from here; its module is loaded when it is first asked for, so that importing a
part (the errors, say) does not load PyTorch. `__init__.pyi` tells type checkers the same.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "bundle": "ModelBundle",
    "condition": "Condition NO_LABEL",
    "denoiser": "Denoiser Network NetworkDenoiser",
    "ema": "ConstantDecay Decay EMA PowerFunction",
    "engine": "Outcome StepEngine",
    "errors": "InvalidBundle InvalidCondition InvalidGuidance InvalidLevels InvalidPlan InvalidPrediction "
    "InvalidSchedule InvalidSeed InvalidShape NonFinite RaverseError",
    "guidance": "AutoGuidance ClassifierFreeGuidance GradientGuidance LogDensity Thresholding",
    "likelihood": "BitsPerDim ElboTerms ReverseProcess bits_per_dim elbo_terms vlb_terms",
    "networks": "DiT DiTConfig MLP MLPConfig NetworkConfig NoisyClassifier NoisyClassifierConfig NoisyFeatures UNet "
    "UNetConfig",
    "objective": "LossHistory TrainingDraws level_weight simple_loss training_draws training_loss",
    "oracle": "GaussianMixture OracleDenoiser energy_distance",
    "prediction": "Parameterization Prediction",
    "row": "Known Trajectory advance",
    "sampler": "SamplerPlan Variance ddim ddpm dpm_solver estimate_x0_variance step",
    "schedule": "NoiseSchedule",
    "spacing": "leading linspace quadratic trailing",
    "trajectory": "OnStep image_to_image inpaint interpolate invert run sample",
    "tuning": "OnTrial TunedTable tune",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
