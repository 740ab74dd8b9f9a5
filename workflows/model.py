"""A loaded model package: prompts in, pictures out, with any guidance.

    package = ModelPackage.load(folder)
    condition = package.condition(["a handwritten seven"], "classifier_free", guidance_scale=2.0)
    pictures = package.to_images(package.sample(condition, seeds=[7]))

The denoiser offers every kind of guidance at once, each row pays for what it asks:

    Thresholding(GradientGuidance(GradientGuidance(ClassifierFreeGuidance(network), classifier), CLIP at x0))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.errors import InvalidBundle
from diffusion_core.guidance import ClassifierFreeGuidance, GradientGuidance, Thresholding
from diffusion_core.networks.noisy_classifier import NoisyClassifier, text_density
from diffusion_core.sampler import SamplerPlan
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import OnStep, sample
from diffusion_core.types import Data, Levels, Rows
from workflows.embed.clip import Clip, load_clip
from workflows.errors import InvalidRequest
from workflows.package_files import CLIP, Defaults, PackageCard, assemble, verify
from workflows.steering import make_plan, steer

_BOUND: Final = 1.0


@final
class ModelPackage:
    """A package in memory.

    Attributes:
        folder: where it lies.
        card: what it draws, and its defaults.
        denoiser: with all guidance around it.
        classifier: the noisy-image classifier in it.
        clip: text and image towers.
        device: where it computes.
    """

    def __init__(
        self,
        folder: Path,
        card: PackageCard,
        denoiser: Denoiser,
        classifier: NoisyClassifier,
        clip: Clip,
        device: torch.device | str,
    ) -> None:
        self.folder, self.card, self.denoiser, self.classifier, self.clip = folder, card, denoiser, classifier, clip
        self.device = torch.device(device)

    @staticmethod
    def assemble(folder: Path, card: PackageCard, *, denoiser: Path, classifier: Path, clip: Path) -> PackageCard:
        """Makes a package on disk: see `workflows.package_files.assemble`."""
        return assemble(folder, card, denoiser=denoiser, classifier=classifier, clip=clip)

    @staticmethod
    def load(
        folder: Path,
        device: torch.device | str = "cpu",
        *,
        buckets: Sequence[int] = (),
        autocast: torch.dtype | None = None,
    ) -> ModelPackage:
        """Loads and verifies a package.

        Args:
            folder: of the package.
            device: where it computes.
            buckets: batch sizes that the network may see; see `NetworkDenoiser`.
            autocast: type of the network's matrix products; None: its own.

        Raises:
            InvalidBundle: a part that is missing, tampered with, or does not fit the others.
            InvalidClip: towers that do not load.
        """
        card, bundles = verify(folder)
        clip = load_clip(clip_folder(folder), device)
        network = bundles["denoiser"].denoiser(device=device, buckets=buckets, autocast=autocast)
        classifier = bundles["classifier"].network(device=device)
        if not isinstance(classifier, NoisyClassifier):
            raise InvalidBundle(f"the classifier of {folder} is a {type(classifier).__name__}, no NoisyClassifier")
        judge = ClipDensity(clip, clip.text.encode(card.candidate_captions).pooled)
        guided: Denoiser = ClassifierFreeGuidance(network)
        guided = GradientGuidance(guided, classifier.log_density, name="classifier", at="x_t")
        guided = GradientGuidance(guided, judge, name="clip", at="x0")
        if card.scale is None:
            guided = Thresholding(guided, clip_x0=_BOUND)
        return ModelPackage(folder, card, guided, classifier, clip, device)

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the denoiser."""
        return self.denoiser.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture."""
        return self.card.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.card.class_names

    @property
    def defaults(self) -> Defaults:
        """Of requests."""
        return self.card.defaults

    @property
    def hash(self) -> str:
        """SHA-256 over the whole package."""
        return self.card.hash

    def condition(
        self,
        prompts: Sequence[str] | int,
        guidance: str = "classifier_free",
        *,
        labels: Sequence[int] | None = None,
        negative_prompts: Sequence[str] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        classifier_scale: float | Sequence[float] | None = None,
        clip_scale: float | Sequence[float] | None = None,
    ) -> Condition:
        """Says what each row shows and how it is steered there.

        Args:
            prompts: one per row; or the number of rows, where no prompt is needed.
            guidance: a kind, or several joined by `+`.
            labels: class of each row, for `classifier`: then the classifier is asked for the class, not the prompt.
            negative_prompts: one per row, for `classifier_free`.
            guidance_scale: classifier-free scale; default: the package's (so for the other scales).
            classifier_scale: of the noisy classifier.
            clip_scale: of CLIP.

        Raises:
            InvalidRequest: an unknown kind, or one that lacks what it needs.
        """
        texts = None if isinstance(prompts, int) else self.clip.text.encode(prompts)
        negatives = None if negative_prompts is None else self.clip.text.encode(negative_prompts)
        defaults = self.defaults
        return steer(
            guidance,
            prompts if isinstance(prompts, int) else len(prompts),
            text=texts,
            labels=labels,
            negative=negatives,
            guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
            classifier_scale=defaults.classifier_scale if classifier_scale is None else classifier_scale,
            clip_scale=defaults.clip_scale if clip_scale is None else clip_scale,
            num_classes=len(self.class_names),
        ).to(self.device)

    def plan(
        self, sampler: str = "ddim", num_steps: int | None = None, eta: float = 0.0, spacing: str = "trailing"
    ) -> SamplerPlan:
        """A sampler's table; see `make_plan`."""
        steps = self.defaults.num_steps if num_steps is None else num_steps
        return make_plan(self.schedule, sampler, steps, eta, spacing)

    def sample(
        self,
        condition: Condition,
        *,
        seeds: Sequence[int],
        plan: SamplerPlan | Sequence[SamplerPlan] | None = None,
        on_step: OnStep | None = None,
    ) -> Data:
        """Samples one row per seed, in [-1, 1] or normalised; default plan: DDIM with the package's number of steps."""
        return sample(
            self.denoiser,
            self.plan() if plan is None else plan,
            condition,
            seeds=seeds,
            shape=self.shape,
            device=self.device,
            on_step=on_step,
        )

    @staticmethod
    def to_images(x: Data) -> Tensor:
        """Data in [-1, 1] as uint8 pixels, on the CPU."""
        return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)


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


def clip_folder(folder: Path) -> Path:
    """Where a package keeps its CLIP towers."""
    return folder / CLIP
