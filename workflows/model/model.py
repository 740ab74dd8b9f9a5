"""A loaded model package: prompts in, pictures out, with any guidance.

    package = ModelPackage.load(folder)
    condition = package.condition(["a handwritten seven"], "classifier_free", guidance_scale=2.0)
    pictures = package.drawn(package.sample(condition, seeds=[7]))

The denoiser offers every kind of guidance at once, each row pays for what it asks:

    Thresholding(GradientGuidance(GradientGuidance(ClassifierFreeGuidance(network), classifier), CLIP at x0))

A package without a classifier, or without an image tower, offers the other kinds. A latent model denoises latents,
which its codec turns into pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.denoiser import Denoiser
from diffusion_core.guidance import Thresholding
from diffusion_core.networks.noisy_classifier import NoisyClassifier
from diffusion_core.sampler import SamplerPlan
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import OnStep, sample
from diffusion_core.types import Data
from workflows.data.rows import RowType
from workflows.errors import InvalidRequest
from workflows.model.codec import Codec, Pixels
from workflows.model.guidance import steer
from workflows.model.parts import adapt, guided, open_classifier, open_codec
from workflows.model.sampling import Sampling
from workflows.options.guidance import DEFAULT_GUIDANCE, Guidance, Need, SettingValue, offered_kinds
from workflows.options.samplers import DEFAULT_SAMPLER, SPACINGS, make_plan
from workflows.package.files import CLIP, PIPELINE, Defaults, PackageCard, scorer_folder, verify
from workflows.towers.clip import Clip, load_clip
from workflows.towers.features import tokens_cut


@final
class ModelPackage:
    """A package in memory.

    Attributes:
        folder: where it lies.
        card: what it draws, and its defaults.
        denoiser: with all guidance around it.
        codec: from pictures to what it denoises, and back.
        sampling: conventions of an imported checkpoint; None: the core's own.
        shape: of one row that it denoises: a picture, or its latents.
        guidance: kinds that it offers.
        device: where it computes.
    """

    def __init__(
        self,
        folder: Path,
        card: PackageCard,
        denoiser: Denoiser,
        classifier: NoisyClassifier | None,
        clip: Clip | None,
        device: torch.device | str,
        *,
        shape: tuple[int, ...] | None = None,
        codec: Codec | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.folder, self.card, self.denoiser, self._classifier, self._clip = folder, card, denoiser, classifier, clip
        self.device = torch.device(device)
        self.shape = card.shape if shape is None else shape
        self.codec: Codec = Pixels() if codec is None else codec
        self.sampling = sampling
        self.guidance = offered_kinds(self._parts())

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
        clip = load_clip(clip_folder(folder), device) if clip_folder(folder).is_dir() else None
        network = bundles["denoiser"].denoiser(device=device, buckets=buckets, autocast=autocast)
        if (folder / PIPELINE).is_dir():
            adapt(network, folder, bundles["denoiser"].hash, device)
        classifier = open_classifier(folder, bundles, device)
        sampling = Sampling.load(folder / PIPELINE) if (folder / PIPELINE).is_dir() else None
        bound = card.rows.bound if sampling is None else sampling.clip
        return ModelPackage(
            folder,
            card,
            Thresholding(guided(network, classifier, clip, card.candidate_captions), clip_x0=bound),
            classifier,
            clip,
            device,
            shape=bundles["denoiser"].shape,
            codec=open_codec(folder, card, device),
            sampling=sampling,
        )

    @property
    def clip(self) -> Clip:
        """The towers.

        Raises:
            InvalidRequest: the model reads no text.
        """
        if self._clip is None:
            raise InvalidRequest("this model reads no text: leave the prompt out", "prompt")
        return self._clip

    def scorer(self) -> Clip | None:
        """Loads the towers that score pictures; None: there are none that look at pictures."""
        if self._clip is not None and self._clip.image_tower is not None:
            return self._clip
        scorer = scorer_folder(self.folder)
        return None if scorer is None else load_clip(scorer, self.device)

    @property
    def classifier(self) -> NoisyClassifier:
        """The noisy-image classifier.

        Raises:
            InvalidRequest: there is none.
        """
        if self._classifier is None:
            raise InvalidRequest(f"this model has no classifier: guidance is {', '.join(self.guidance)}", "guidance")
        return self._classifier

    def tokens_cut(self, text: str) -> int:
        """Tokens at the end of a text that the model does not read."""
        return 0 if self._clip is None else tokens_cut(self._clip.text, text)

    @property
    def reads_text(self) -> bool:
        """Whether prompts condition it."""
        return self._clip is not None

    @property
    def conditions(self) -> Literal["text", "label", "nothing"]:
        """What its denoiser reads."""
        return "text" if self.reads_text else "label" if self.sees_labels else "nothing"

    @property
    def sees_labels(self) -> bool:
        """Whether the denoiser itself is conditioned on labels, in place of prompts."""
        return self._clip is None and len(self.card.class_names) > 0

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the denoiser."""
        return self.denoiser.schedule

    @property
    def rows(self) -> RowType:
        """The type of what it draws."""
        return self.card.rows

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.card.class_names

    @property
    def defaults(self) -> Defaults:
        """The values that a request gets which does not give its own."""
        return self.card.defaults

    @property
    def hash(self) -> str:
        """SHA-256 over the whole package."""
        return self.card.hash

    def condition(
        self,
        prompts: Sequence[str] | int,
        guidance: Guidance | str = DEFAULT_GUIDANCE.name,
        *,
        labels: Sequence[int] | None = None,
        negative_prompts: Sequence[str] | None = None,
        **settings: SettingValue | None,
    ) -> Condition:
        """Says what each row shows and how it is steered there.

        Args:
            prompts: one per row; or the number of rows, where no prompt is needed.
            guidance: kinds and settings; or a kind, or several joined by `+`. The package's own settings fill in what
                is left open.
            labels: class of each row, for `classifier`: then the classifier is asked for the class, not the prompt;
                for a model that is conditioned on labels, what each row shows.
            negative_prompts: one per row, for `classifier_free`.
            **settings: of guidance that is given by name, as in `workflows.options.guidance.SETTINGS`.

        Raises:
            InvalidRequest: an unknown kind or setting, or one that lacks what it needs; names the field.
        """
        chosen = Guidance.of(guidance, **settings) if isinstance(guidance, str) else guidance.with_settings(**settings)
        if missing := sorted(set(chosen.kinds) - set(self.guidance)):
            raise InvalidRequest(f"this model offers no {missing[0]}: give {', '.join(self.guidance)}", "guidance")
        texts = None if isinstance(prompts, int) else self.clip.text.encode(prompts)
        negatives = None if negative_prompts is None else self.clip.text.encode(negative_prompts)
        return steer(
            chosen.over(self.defaults.guidance),
            prompts if isinstance(prompts, int) else len(prompts),
            text=texts,
            labels=labels,
            negative=negatives,
            num_classes=len(self.class_names),
            sees_labels=self.sees_labels,
        ).to(self.device)

    def plan(
        self,
        sampler: str = DEFAULT_SAMPLER,
        num_steps: int | None = None,
        eta: float = 0.0,
        spacing: str | None = None,
    ) -> SamplerPlan:
        """A sampler's table: see `make_plan`; of an imported checkpoint, as its own scheduler would step.

        Args:
            sampler: a name of `workflows.options.samplers.SAMPLERS`.
            num_steps: default: the package's.
            eta: of DDIM.
            spacing: default: `trailing`, or the checkpoint's own.
        """
        steps = self.defaults.num_steps if num_steps is None else num_steps
        if self.sampling is not None:
            return self.sampling.plan(self.schedule, sampler, steps, eta, spacing)
        return make_plan(self.schedule, sampler, steps, eta, spacing or SPACINGS[0])

    def sample(
        self,
        condition: Condition,
        *,
        seeds: Sequence[int],
        plan: SamplerPlan | Sequence[SamplerPlan] | None = None,
        on_step: OnStep | None = None,
        start: Data | None = None,
    ) -> Data:
        """Samples one row per seed: pictures in [-1, 1], latents, or normalised vectors.

        Args:
            condition: of the rows.
            seeds: one per row.
            plan: default: DDIM with the package's number of steps.
            on_step: receives the predicted x0 along the way.
            start: noise to start from, `(b, *shape)`; None: that of the seeds.

        Returns:
            `(b, *shape)`; `drawn` makes of it what the model draws.
        """
        return sample(
            self.denoiser,
            self.plan() if plan is None else plan,
            condition,
            seeds=seeds,
            shape=self.shape,
            device=self.device,
            on_step=on_step,
            start=None if start is None else start.to(self.device),
        )

    def drawn(self, x: Data) -> Tensor:
        """Samples as stored rows, on the CPU: uint8 pixels, or float32 vectors, still normalised."""
        return self.rows.from_x(self.codec.decode(x))

    def previews(self, x0: Data) -> Tensor:
        """Rows on their way as `drawn` gives them, by a quicker and coarser decoding."""
        return self.rows.from_x(self.codec.preview(x0))

    def _parts(self) -> list[Need]:
        """The parts that kinds of guidance need."""
        found: list[Need] = [] if self.conditions == "nothing" else ["condition"]
        if self._classifier is not None:
            found.append("classifier")
        if self._clip is not None and self._clip.image_tower is not None:
            found.append("image_tower")
        return found


def clip_folder(folder: Path) -> Path:
    """Where a package keeps the CLIP towers that its denoiser reads."""
    return folder / CLIP
