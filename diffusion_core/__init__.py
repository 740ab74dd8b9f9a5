"""The mathematics of diffusion models, exact and row by row: pure PyTorch.

    schedule = NoiseSchedule.cosine(1000)
    denoiser = NetworkDenoiser(network, schedule, parameterization="v")
    plan = ddim(schedule, trailing(schedule, 50))
    images = sample(denoiser, plan, seeds=[7, 8, 9], shape=(3, 32, 32))

Every public name can be imported from here; its module is loaded when it is first asked for, so that importing a
part (the errors, say) does not load PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_core.bundle import ModelBundle as ModelBundle
    from diffusion_core.condition import NO_LABEL as NO_LABEL
    from diffusion_core.condition import Condition as Condition
    from diffusion_core.denoiser import Denoiser as Denoiser
    from diffusion_core.denoiser import Network as Network
    from diffusion_core.denoiser import NetworkDenoiser as NetworkDenoiser
    from diffusion_core.ema import EMA as EMA
    from diffusion_core.ema import ConstantDecay as ConstantDecay
    from diffusion_core.ema import Decay as Decay
    from diffusion_core.ema import PowerFunction as PowerFunction
    from diffusion_core.engine import Outcome as Outcome
    from diffusion_core.engine import StepEngine as StepEngine
    from diffusion_core.errors import InvalidBundle as InvalidBundle
    from diffusion_core.errors import InvalidCondition as InvalidCondition
    from diffusion_core.errors import InvalidGuidance as InvalidGuidance
    from diffusion_core.errors import InvalidLevels as InvalidLevels
    from diffusion_core.errors import InvalidPlan as InvalidPlan
    from diffusion_core.errors import InvalidPrediction as InvalidPrediction
    from diffusion_core.errors import InvalidSchedule as InvalidSchedule
    from diffusion_core.errors import InvalidSeed as InvalidSeed
    from diffusion_core.errors import InvalidShape as InvalidShape
    from diffusion_core.errors import NonFinite as NonFinite
    from diffusion_core.errors import RaverseError as RaverseError
    from diffusion_core.guidance import AutoGuidance as AutoGuidance
    from diffusion_core.guidance import ClassifierFreeGuidance as ClassifierFreeGuidance
    from diffusion_core.guidance import GradientGuidance as GradientGuidance
    from diffusion_core.guidance import LogDensity as LogDensity
    from diffusion_core.guidance import Thresholding as Thresholding
    from diffusion_core.likelihood import BitsPerDim as BitsPerDim
    from diffusion_core.likelihood import ElboTerms as ElboTerms
    from diffusion_core.likelihood import ReverseProcess as ReverseProcess
    from diffusion_core.likelihood import bits_per_dim as bits_per_dim
    from diffusion_core.likelihood import elbo_terms as elbo_terms
    from diffusion_core.likelihood import vlb_terms as vlb_terms
    from diffusion_core.networks import MLP as MLP
    from diffusion_core.networks import DiT as DiT
    from diffusion_core.networks import DiTConfig as DiTConfig
    from diffusion_core.networks import MLPConfig as MLPConfig
    from diffusion_core.networks import NetworkConfig as NetworkConfig
    from diffusion_core.networks import NoisyClassifier as NoisyClassifier
    from diffusion_core.networks import NoisyClassifierConfig as NoisyClassifierConfig
    from diffusion_core.networks import NoisyFeatures as NoisyFeatures
    from diffusion_core.networks import UNet as UNet
    from diffusion_core.networks import UNetConfig as UNetConfig
    from diffusion_core.objective import LossHistory as LossHistory
    from diffusion_core.objective import TrainingDraws as TrainingDraws
    from diffusion_core.objective import level_weight as level_weight
    from diffusion_core.objective import simple_loss as simple_loss
    from diffusion_core.objective import training_draws as training_draws
    from diffusion_core.objective import training_loss as training_loss
    from diffusion_core.oracle import GaussianMixture as GaussianMixture
    from diffusion_core.oracle import OracleDenoiser as OracleDenoiser
    from diffusion_core.oracle import energy_distance as energy_distance
    from diffusion_core.prediction import Parameterization as Parameterization
    from diffusion_core.prediction import Prediction as Prediction
    from diffusion_core.sampler import SamplerPlan as SamplerPlan
    from diffusion_core.sampler import Variance as Variance
    from diffusion_core.sampler import ddim as ddim
    from diffusion_core.sampler import ddpm as ddpm
    from diffusion_core.sampler import dpm_solver as dpm_solver
    from diffusion_core.sampler import estimate_x0_variance as estimate_x0_variance
    from diffusion_core.sampler import step as step
    from diffusion_core.schedule import NoiseSchedule as NoiseSchedule
    from diffusion_core.spacing import leading as leading
    from diffusion_core.spacing import linspace as linspace
    from diffusion_core.spacing import quadratic as quadratic
    from diffusion_core.spacing import trailing as trailing
    from diffusion_core.trajectory import Known as Known
    from diffusion_core.trajectory import OnStep as OnStep
    from diffusion_core.trajectory import Trajectory as Trajectory
    from diffusion_core.trajectory import advance as advance
    from diffusion_core.trajectory import image_to_image as image_to_image
    from diffusion_core.trajectory import inpaint as inpaint
    from diffusion_core.trajectory import interpolate as interpolate
    from diffusion_core.trajectory import invert as invert
    from diffusion_core.trajectory import run as run
    from diffusion_core.trajectory import sample as sample

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
    "sampler": "SamplerPlan Variance ddim ddpm dpm_solver estimate_x0_variance step",
    "schedule": "NoiseSchedule",
    "spacing": "leading linspace quadratic trailing",
    "trajectory": "Known OnStep Trajectory advance image_to_image inpaint interpolate invert run sample",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
