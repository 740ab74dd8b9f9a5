"""From a `Guidance` and what rows show to the `Condition` that the core reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from diffusion_core.condition import NO_LABEL, Condition
from workflows.errors import InvalidRequest
from workflows.options.guidance import LABEL_KINDS, NEGATIVE_KINDS, Guidance

if TYPE_CHECKING:
    from workflows.towers.features import EncodedText


def steer(
    guidance: Guidance,
    num_rows: int,
    *,
    text: EncodedText | None = None,
    labels: Sequence[int] | None = None,
    negative: EncodedText | None = None,
    num_classes: int | None = None,
    sees_labels: bool = False,
) -> Condition:
    """Translates guidance into what the wrappers of the core read.

    Under kinds that do not show the prompt to the denoiser, the gradient of the unconditional model's judge does all
    the work.

    Args:
        guidance: kinds and settings.
        num_rows: b.
        text: b encoded prompts.
        labels: b classes, for kinds that take a label.
        negative: b encoded negative prompts, for kinds that take one.
        num_classes: labels are below this; None: not checked.
        sees_labels: the denoiser is conditioned on the label, in place of a prompt.

    Raises:
        InvalidRequest: a kind lacks an input that it needs, or an input has no effect; names the field.
    """
    _check_inputs(guidance, text, labels, negative, num_classes, sees_labels)
    condition = Condition.null(num_rows)
    if text is not None and guidance.kinds != ("none",):
        condition = Condition.of(*text)
    if labels is not None:
        label = torch.as_tensor(labels, dtype=torch.int64, device=condition.present.device)
        present = torch.ones_like(condition.present) if sees_labels else condition.present
        condition = replace(condition, present=present, label=label)
    if not guidance.sees_prompt:
        condition = condition.hidden()
    if negative is not None:
        condition = replace(condition, negative=Condition.of(*negative))
    return condition.with_settings(**guidance.core_settings())


def _check_inputs(
    guidance: Guidance,
    text: EncodedText | None,
    labels: Sequence[int] | None,
    negative: EncodedText | None,
    num_classes: int | None,
    sees_labels: bool,
) -> None:
    if negative is not None and not guidance.takes_negative:
        raise InvalidRequest(
            f"a negative prompt has no effect with guidance {guidance.name!r}: take {NEGATIVE_KINDS}",
            "negative_prompt",
        )
    if labels is not None and not guidance.takes_label and not (sees_labels and guidance.sees_prompt):
        raise InvalidRequest(f"a label has no effect with guidance {guidance.name!r}: take {LABEL_KINDS}", "label")
    by_label = labels is not None and (sees_labels or all(kind.takes_label for kind in guidance.rows))
    if guidance.kinds != ("none",) and text is None and not by_label:
        raise InvalidRequest(f"guidance {guidance.name} needs a prompt", "prompt")
    if labels is not None and num_classes is not None:
        outside = sorted({label for label in labels if not NO_LABEL <= label < num_classes})
        if outside:
            raise InvalidRequest(f"found label {outside[0]}, wanted 0..{num_classes - 1}", "label")
