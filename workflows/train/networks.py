"""From the configuration's sizes, and what the data and the CLIP dictate, to the core's network configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from diffusion_core.networks import NetworkConfig, NoisyClassifierConfig
from diffusion_core.networks.registry import network_kind
from diffusion_core.schedule import NoiseSchedule
from workflows.config.schema import NetworkConfig as NetworkSection
from workflows.config.schema import ScheduleConfig
from workflows.embed.cache import EmbeddingCache
from workflows.options.networks import NETWORKS, networks_for


@final
@dataclass(frozen=True)
class Seen:
    """What data and CLIP dictate.

    Attributes:
        rows: name of the type of the rows.
        shape: of a row as the networks see it.
        token_dim: width of a caption's token features.
        pooled_dim: width of a caption's pooled vector.
    """

    rows: str
    shape: tuple[int, ...]
    token_dim: int
    pooled_dim: int

    @staticmethod
    def of(cache: EmbeddingCache) -> Seen:
        """What a cache holds."""
        return Seen(cache.rows.name, cache.shape, cache.manifest.clip["width"], cache.manifest.clip["embed_dim"])


def denoiser_network(section: NetworkSection, cache: EmbeddingCache) -> NetworkConfig:
    """A denoiser that reads the cache's tokens and pooled vectors; of a kind that fits the rows."""
    return denoiser_for(section, Seen.of(cache))


def denoiser_for(section: NetworkSection, seen: Seen) -> NetworkConfig:
    """A denoiser that reads tokens and pooled vectors; of a kind that fits the rows."""
    fitting = networks_for(seen.rows)
    option = NETWORKS[section.kind if section.kind in fitting else fitting[0]]
    sizes = {argument: getattr(section, field) for argument, field in option.sizes.items()}
    network: NetworkConfig = network_kind(option.name).config(
        seen.shape, token_dim=seen.token_dim, pooled_dim=seen.pooled_dim, **sizes
    )
    return network


def classifier_network(
    section: NetworkSection, cache: EmbeddingCache, num_classes: int, num_candidates: int
) -> NoisyClassifierConfig:
    """A noisy-image classifier of the cache's rows, as `classifier_for` makes it."""
    return classifier_for(section, Seen.of(cache), num_classes, num_candidates)


def classifier_for(section: NetworkSection, seen: Seen, num_classes: int, num_candidates: int) -> NoisyClassifierConfig:
    """A noisy-image classifier with a text head, and a label head where there are classes."""
    return NoisyClassifierConfig(
        seen.shape,
        patch=section.patch_size,
        stem=section.stem,
        width=section.width,
        depth=section.depth,
        num_heads=section.num_heads,
        mlp_ratio=section.mlp_ratio,
        num_classes=num_classes or None,
        embed_dim=seen.pooled_dim,
        num_candidates=num_candidates,
    )


def noise_schedule(section: ScheduleConfig) -> NoiseSchedule:
    """The configured schedule."""
    options = {"shift": section.shift} if section.kind == "flow" else {}
    schedule: NoiseSchedule = getattr(NoiseSchedule, section.kind)(section.num_levels, **options)
    return schedule.with_zero_terminal_snr() if section.zero_terminal_snr else schedule
