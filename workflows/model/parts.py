"""The parts of a package as objects, and all guidance around its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, final

import torch
from torch import Tensor, nn

from diffusion_core.bundle import ModelBundle
from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser, NetworkDenoiser
from diffusion_core.errors import InvalidBundle
from diffusion_core.guidance import ClassifierFreeGuidance, GradientGuidance
from diffusion_core.networks.noisy_classifier import NoisyClassifier, text_density
from diffusion_core.types import Data, Levels, Rows
from workflows.errors import InvalidRequest
from workflows.model.codec import Codec, Pixels
from workflows.model.sharing import share_weights
from workflows.package.files import AUTOENCODER, PackageCard
from workflows.package.lora import ADAPTER, Adapter
from workflows.towers.clip import Clip


def guided(
    network: NetworkDenoiser, classifier: NoisyClassifier | None, clip: Clip | None, candidates: Sequence[str]
) -> Denoiser:
    """Every kind of guidance that the parts allow, around the network.

    Args:
        network: the denoiser.
        classifier: judges x_t; None: there is none.
        clip: looks at the predicted x0; None, or without an image tower: it does not.
        candidates: captions that a prompt competes with before CLIP.
    """
    denoiser: Denoiser = ClassifierFreeGuidance(network)
    if classifier is not None:
        denoiser = GradientGuidance(denoiser, classifier.log_density, name="classifier", at="x_t")
    if clip is not None and clip.image_tower is not None:
        judge = ClipDensity(clip, clip.text.encode(candidates).pooled)
        denoiser = GradientGuidance(denoiser, judge, name="clip", at="x0")
    return denoiser


@final
class ClipDensity:
    """CLIP's log p(caption | picture), normalised over candidate captions: guidance through the predicted x0.

    Args:
        clip: the towers.
        candidates: pooled captions that a row's own competes with, `(m, e)`.
    """

    def __init__(self, clip: Clip, candidates: Tensor) -> None:
        self._clip, self._candidates = clip, candidates

    def __call__(self, x: Data, level: Levels, condition: Condition) -> Rows:  # noqa: ARG002
        """See `diffusion_core.guidance.LogDensity`.

        Raises:
            InvalidRequest: a row without a text.
        """
        if condition.pooled is None:
            raise InvalidRequest("CLIP guidance needs a prompt in every row that asks for it", "prompt")
        seen = self._clip.image.encode(x)
        scale = seen.new_tensor([self._clip.logit_scale])
        return text_density(seen, scale, condition.pooled.to(seen), self._candidates)


def adapt(network: NetworkDenoiser, folder: Path, bundle: str, device: torch.device | str) -> None:
    """An imported base and its LoRA versions differ by their matrices alone: they hold its weights together."""
    module = cast(nn.Module, network.network)
    share_weights(module, bundle, device)
    if (folder / ADAPTER).is_dir():
        Adapter.load(folder / ADAPTER).apply(module, bundle)


def open_classifier(
    folder: Path, bundles: Mapping[str, ModelBundle], device: torch.device | str
) -> NoisyClassifier | None:
    """The noisy-image classifier, where there is one.

    Raises:
        InvalidBundle: it is another kind of network.
    """
    if "classifier" not in bundles:
        return None
    classifier = bundles["classifier"].network(device=device)
    if not isinstance(classifier, NoisyClassifier):
        raise InvalidBundle(f"the classifier of {folder} is a {type(classifier).__name__}, no NoisyClassifier")
    return classifier


def open_codec(folder: Path, card: PackageCard, device: torch.device | str) -> Codec:
    """What stands between pictures and what is denoised."""
    if not (folder / AUTOENCODER).is_dir():
        return Pixels()
    from workflows.model.latents import Latents

    return Latents.load(folder / AUTOENCODER, card.shape, device)
