"""From the configuration's sizes, and what the data and the CLIP dictate, to the core's network configurations."""

from __future__ import annotations

from diffusion_core.networks import NetworkConfig, NoisyClassifierConfig
from diffusion_core.networks.registry import network_kind
from diffusion_core.schedule import NoiseSchedule
from workflows.config.schema import NetworkConfig as NetworkSection
from workflows.config.schema import ScheduleConfig
from workflows.embed.cache import EmbeddingCache
from workflows.options.networks import NETWORKS, networks_for


def denoiser_network(section: NetworkSection, cache: EmbeddingCache) -> NetworkConfig:
    """A denoiser that reads the cache's tokens and pooled vectors; of a kind that fits the rows."""
    fitting, clip = networks_for(cache.rows.name), cache.manifest.clip
    option = NETWORKS[section.kind if section.kind in fitting else fitting[0]]
    sizes = {argument: getattr(section, field) for argument, field in option.sizes.items()}
    network: NetworkConfig = network_kind(option.name).config(
        cache.shape, token_dim=clip["width"], pooled_dim=clip["embed_dim"], **sizes
    )
    return network


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
        embed_dim=cache.manifest.clip["embed_dim"],
        num_candidates=num_candidates,
    )


def noise_schedule(section: ScheduleConfig) -> NoiseSchedule:
    """The configured schedule."""
    options = {"shift": section.shift} if section.kind == "flow" else {}
    schedule: NoiseSchedule = getattr(NoiseSchedule, section.kind)(section.num_levels, **options)
    return schedule.with_zero_terminal_snr() if section.zero_terminal_snr else schedule
