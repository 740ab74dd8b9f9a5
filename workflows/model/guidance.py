"""Guidance and samplers by the names that users know them by, translated into what the core reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import torch

from diffusion_core.condition import NO_LABEL, Condition
from diffusion_core.sampler import SamplerPlan, ddim, ddpm, dpm_solver
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import leading, linspace, quadratic, trailing
from workflows.errors import InvalidRequest

if TYPE_CHECKING:
    from workflows.towers.features import EncodedText

GuidanceKind: TypeAlias = Literal["none", "direct", "classifier_free", "classifier", "clip"]
GUIDANCE_KINDS: Final[tuple[GuidanceKind, ...]] = get_args(GuidanceKind)
SamplerKind: TypeAlias = Literal["ddim", "ddpm", "dpm_solver"]
SAMPLER_KINDS: Final[tuple[SamplerKind, ...]] = get_args(SamplerKind)
SPACINGS: Final = {"trailing": trailing, "leading": leading, "linspace": linspace, "quadratic": quadratic}

# Kinds under which the denoiser sees the prompt; under the others a gradient alone steers it.
_SEEING: Final = frozenset({"direct", "classifier_free"})


def steer(
    guidance: str,
    num_rows: int,
    *,
    text: EncodedText | None = None,
    labels: Sequence[int] | None = None,
    negative: EncodedText | None = None,
    guidance_scale: float | Sequence[float] = 1.0,
    classifier_scale: float | Sequence[float] = 0.0,
    clip_scale: float | Sequence[float] = 0.0,
    num_classes: int | None = None,
    sees_labels: bool = False,
) -> Condition:
    """Translates a user's kind of guidance into what the wrappers read.

    Under `classifier` and `clip` alone the denoiser does not see the prompt: the gradient of the unconditional
    model's judge does all the work. Scales of kinds that are not asked for are ignored.

    Args:
        guidance: a kind, or several joined by `+`.
        num_rows: b.
        text: b encoded prompts.
        labels: b classes, for `classifier`.
        negative: b encoded negative prompts, for `classifier_free`.
        guidance_scale: for `classifier_free`, one for all rows or one per row; so for the others.
        classifier_scale: for `classifier`.
        clip_scale: for `clip`.
        num_classes: labels are below this; None: not checked.
        sees_labels: the denoiser is conditioned on the label, in place of a prompt.

    Raises:
        InvalidRequest: an unknown kind, or one that lacks what it needs; names the field.
    """
    kinds = parse_guidance(guidance)
    _check_inputs(kinds, text, labels, negative, num_classes, sees_labels)
    condition = Condition.null(num_rows)
    if text is not None and kinds != {"none"}:
        tokens, mask, pooled = text
        condition = Condition.of(tokens, mask, pooled)
    if labels is not None:
        label = torch.as_tensor(labels, dtype=torch.int64, device=condition.present.device)
        present = torch.ones_like(condition.present) if sees_labels else condition.present
        condition = Condition(present, condition.tokens, condition.mask, condition.pooled, label)
    if not kinds & _SEEING:
        condition = condition.hidden()
    if negative is not None:
        avoided = Condition.of(*negative)
        parts = (condition.tokens, condition.mask, condition.pooled, condition.label)
        condition = Condition(condition.present, *parts, negative=avoided)
    # Scales of kinds that nobody asks for are not named: a model may lack these kinds.
    asked = {"classifier": {"classifier_scale": classifier_scale}, "clip": {"clip_scale": clip_scale}}
    scales = {name: scale for kind in asked.keys() & kinds for name, scale in asked[kind].items()}
    return condition.with_settings(guidance_scale=guidance_scale if "classifier_free" in kinds else 1.0, **scales)


def parse_guidance(guidance: str) -> frozenset[str]:
    """The kinds that are joined by `+`.

    Raises:
        InvalidRequest: an unknown kind, or `none` beside another.
    """
    kinds = frozenset(guidance.split("+"))
    if unknown := sorted(kinds - set(GUIDANCE_KINDS)):
        raise InvalidRequest(f"unknown guidance {unknown[0]!r}: give one of {', '.join(GUIDANCE_KINDS)}", "guidance")
    if "none" in kinds and len(kinds) > 1:
        raise InvalidRequest(f"guidance {guidance!r}: `none` stands alone", "guidance")
    return kinds


def make_plan(
    schedule: NoiseSchedule, sampler: str, num_steps: int, eta: float = 0.0, spacing: str = "trailing"
) -> SamplerPlan:
    """The table of a sampler by name.

    Args:
        schedule: of the denoiser.
        sampler: `ddim`, `ddpm` or `dpm_solver`.
        num_steps: steps.
        eta: of DDIM, in [0, 1].
        spacing: which levels are visited, by name (see `diffusion_core.spacing`).

    Raises:
        InvalidRequest: an unknown sampler or spacing, or an eta for one that has none.
        InvalidLevels: more steps than the schedule has levels.
    """
    if spacing not in SPACINGS:
        raise InvalidRequest(f"unknown spacing {spacing!r}: give one of {', '.join(SPACINGS)}", "spacing")
    levels = SPACINGS[spacing](schedule, num_steps)
    if sampler == "ddim":
        return ddim(schedule, levels, eta)
    if sampler not in SAMPLER_KINDS:
        raise InvalidRequest(f"unknown sampler {sampler!r}: give one of {', '.join(SAMPLER_KINDS)}", "sampler")
    if eta != 0.0:
        raise InvalidRequest(f"eta = {eta} has no effect with {sampler}: leave it out, or take ddim", "eta")
    return ddpm(schedule, levels) if sampler == "ddpm" else dpm_solver(schedule, levels)


def _check_inputs(
    kinds: frozenset[str],
    text: EncodedText | None,
    labels: Sequence[int] | None,
    negative: EncodedText | None,
    num_classes: int | None,
    sees_labels: bool,
) -> None:
    if negative is not None and "classifier_free" not in kinds:
        raise InvalidRequest("a negative prompt has an effect with guidance `classifier_free` only", "negative_prompt")
    if labels is not None and "classifier" not in kinds and not (sees_labels and kinds & _SEEING):
        raise InvalidRequest("a label has an effect with guidance `classifier` only", "label")
    by_label = labels is not None and (sees_labels or kinds == {"classifier"})
    if kinds != {"none"} and text is None and not by_label:
        raise InvalidRequest(f"guidance {'+'.join(sorted(kinds))} needs a prompt", "prompt")
    if labels is not None and num_classes is not None:
        outside = sorted({label for label in labels if not NO_LABEL <= label < num_classes})
        if outside:
            raise InvalidRequest(f"found label {outside[0]}, wanted 0..{num_classes - 1}", "label")
