"""From the configuration's sizes, and what the data and the CLIP dictate, to the core's network configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from diffusion_core.networks import DiTConfig, MLPConfig, NetworkConfig, NoisyClassifierConfig, UNetConfig
from diffusion_core.schedule import NoiseSchedule
from workflows.config.schema import NetworkConfig as NetworkSection
from workflows.config.schema import ScheduleConfig
from workflows.embed.cache import EmbeddingCache


def denoiser_network(section: NetworkSection, cache: EmbeddingCache) -> NetworkConfig:
    """A denoiser that reads the cache's tokens and pooled vectors; of a kind that fits the rows."""
    fitting = cache.rows.networks
    kind = section.kind if section.kind in fitting else fitting[0]
    return _DENOISERS[kind](section, cache, cache.captions.tokens.shape[2], cache.captions.pooled.shape[1])


def _dit(section: NetworkSection, cache: EmbeddingCache, token_dim: int, pooled_dim: int) -> DiTConfig:
    return DiTConfig(
        cache.shape,
        patch=section.patch_size,
        stem=section.stem,
        width=section.width,
        depth=section.depth,
        num_heads=section.num_heads,
        mlp_ratio=section.mlp_ratio,
        token_dim=token_dim,
        pooled_dim=pooled_dim,
    )


def _unet(section: NetworkSection, cache: EmbeddingCache, token_dim: int, pooled_dim: int) -> UNetConfig:
    return UNetConfig(
        cache.shape,
        width=section.width,
        num_blocks=section.depth,
        num_heads=section.num_heads,
        token_dim=token_dim,
        pooled_dim=pooled_dim,
    )


def _mlp(section: NetworkSection, cache: EmbeddingCache, token_dim: int, pooled_dim: int) -> MLPConfig:
    return MLPConfig(cache.shape, width=section.width, depth=section.depth, token_dim=token_dim, pooled_dim=pooled_dim)


_DENOISERS: Final[dict[str, Callable[[NetworkSection, EmbeddingCache, int, int], NetworkConfig]]] = {
    "dit": _dit,
    "unet": _unet,
    "mlp": _mlp,
}
"""By the names in `RowType.networks`."""


def classifier_network(
    section: NetworkSection, cache: EmbeddingCache, num_classes: int, num_candidates: int
) -> NoisyClassifierConfig:
    """A noisy-image classifier with a text head, and a label head where there are classes."""
    return NoisyClassifierConfig(
        cache.shape,
        patch=section.patch_size,
        stem=section.stem,
        width=section.width,
        depth=section.depth,
        num_heads=section.num_heads,
        mlp_ratio=section.mlp_ratio,
        num_classes=num_classes or None,
        embed_dim=cache.captions.pooled.shape[1],
        num_candidates=num_candidates,
    )


def noise_schedule(section: ScheduleConfig) -> NoiseSchedule:
    """The configured schedule."""
    families = {
        "linear": NoiseSchedule.linear,
        "cosine": NoiseSchedule.cosine,
        "scaled_linear": NoiseSchedule.scaled_linear,
        "sigmoid": NoiseSchedule.sigmoid,
    }
    schedule = families[section.kind](section.num_levels)
    return schedule.with_zero_terminal_snr() if section.zero_terminal_snr else schedule
