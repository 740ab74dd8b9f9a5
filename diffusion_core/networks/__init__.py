"""Networks that predict, or judge, noisy data."""

from diffusion_core.networks.dit import DiT as DiT
from diffusion_core.networks.dit import DiTConfig as DiTConfig
from diffusion_core.networks.mlp import MLP as MLP
from diffusion_core.networks.mlp import MLPConfig as MLPConfig
from diffusion_core.networks.noisy_classifier import NoisyClassifier as NoisyClassifier
from diffusion_core.networks.noisy_classifier import NoisyClassifierConfig as NoisyClassifierConfig
from diffusion_core.networks.noisy_classifier import NoisyFeatures as NoisyFeatures
from diffusion_core.networks.noisy_classifier import contrastive_loss as contrastive_loss
from diffusion_core.networks.registry import NetworkConfig as NetworkConfig
from diffusion_core.networks.registry import NetworkKind as NetworkKind
from diffusion_core.networks.registry import register_network as register_network
from diffusion_core.networks.unet import UNet as UNet
from diffusion_core.networks.unet import UNetConfig as UNetConfig
