"""Resolves a request against a model: fills in every default, and finds every contradiction.

The schema has checked each field alone; `resolve` checks the fields together, and against the model's capabilities.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from diffusion_core.strength import DEFAULT_STRENGTH, steps_of_strength
from workflows.errors import InvalidRequest, ModelNotFound
from workflows.options.guidance import KINDS, LABEL_KINDS, NEGATIVE_KINDS, SCALED_KINDS, Guidance
from workflows.options.samplers import SAMPLERS, useless_eta
from workflows.serve.request.capabilities import ModelCapabilities
from workflows.serve.request.schema import (
    LARGEST_SEED,
    EditRequest,
    GenerationSettings,
    PictureRequest,
    further_settings,
)

# A random seed of the service is exact in every JSON reader, also in a reader that knows doubles only.
_SEED_BITS: Final = 48


@final
@dataclass(frozen=True)
class ResolvedRequest:
    """A request that the model can serve, with no default left open.

    Attributes:
        settings: everything that determines the pictures.
        label: index of the class; None without a class.
    """

    settings: GenerationSettings
    label: int | None

    @property
    def guidance(self) -> Guidance:
        """The kinds and settings of the guidance."""
        return Guidance.of(self.settings.guidance, **further_settings(self.settings)).at(self.settings.guidance_scale)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts to encode: the prompt if any, then the negative prompt if any."""
        return tuple(text for text in (self.settings.prompt, self.settings.negative_prompt) if text)

    @property
    def num_steps(self) -> int:
        """Steps that each row makes; an edit skips the first steps of its plan."""
        if self.settings.strength is None:
            return self.settings.num_inference_steps
        return steps_of_strength(self.settings.strength, self.settings.num_inference_steps)


def first_seed(request: PictureRequest) -> int:
    """The seed of the first picture: the client's, or a random one."""
    return secrets.randbits(_SEED_BITS) if request.seed is None else request.seed


def preview_points(request: PictureRequest, num_steps: int) -> tuple[int, ...]:
    """The numbers of remaining steps at which a preview is due, descending.

    Args:
        request: the fields `stream`, `partial_images` and `preview_every` count.
        num_steps: steps that each row makes.
    """
    if not request.stream:
        return ()
    if request.preview_every is not None:
        return tuple(range(num_steps - request.preview_every, 0, -request.preview_every))
    count = request.partial_images or 0
    points = {num_steps - round(num_steps * part / (count + 1)) for part in range(1, count + 1)}
    return tuple(sorted(points - {0, num_steps}, reverse=True))


def resolve(request: PictureRequest, capabilities: ModelCapabilities, *, inpainted: bool = False) -> ResolvedRequest:
    """Fills in the fields that the request leaves open.

    Args:
        request: as the client sent it.
        capabilities: the abilities of the version that will make the pictures.
        inpainted: whether an edit came with a mask.

    Raises:
        ModelNotFound: the request names another model.
        InvalidRequest: the model cannot serve it; the message names every field at fault, `param` the first.
    """
    if request.model is not None and request.model.partition("@")[0] != capabilities.model:
        raise ModelNotFound(
            f"no model {request.model!r} is served here: ask for {capabilities.model!r}, or leave `model` out"
        )
    faults = list(_faults(request, capabilities))
    if faults:
        raise InvalidRequest("; ".join(f"{name}: {text}" for name, text in faults), faults[0][0])
    label = _label_index(request, capabilities)
    guidance = _guidance(request, capabilities)
    settings = GenerationSettings(
        model=capabilities.model,
        version=capabilities.version,
        seeds=_seeds(request),
        size=capabilities.size_text,
        sampler=request.sampler,
        num_inference_steps=request.num_inference_steps or capabilities.default_steps,
        eta=(request.eta or 0.0) if SAMPLERS[request.sampler].takes_eta else None,
        guidance=guidance.name,
        guidance_scale=guidance.scale if request.guidance_scale is None else request.guidance_scale,
        prompt=request.prompt.strip(),
        negative_prompt=(request.negative_prompt or "").strip() or None,
        label=None if label is None else capabilities.class_names[label],
        strength=_strength(request, inpainted),
        inpainted=inpainted if isinstance(request, EditRequest) else None,
        without_effect=list(request.without_effect),
        **guidance.further(),
    )
    return ResolvedRequest(settings, label)


def _faults(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[tuple[str, str]]:
    """The fields at fault, in the order of the schema."""
    yield from _text_faults(request, capabilities)
    if request.size not in ("auto", capabilities.size_text):
        yield "size", f"this model makes {capabilities.size_text} only (found {request.size!r})"
    if request.guidance not in capabilities.guidance:
        yield "guidance", f"this model offers {', '.join(capabilities.guidance)} (found {request.guidance!r})"
    if request.guidance_scale is not None and _has_no_scale(request):
        yield "guidance_scale", _no_effect(request, SCALED_KINDS)
    yield from _guidance_faults(request, capabilities)
    yield from _label_faults(request, capabilities)
    if request.num_inference_steps is not None and request.num_inference_steps > capabilities.max_steps:
        yield "num_inference_steps", f"at most {capabilities.max_steps} (found {request.num_inference_steps})"
    if request.eta is not None and not SAMPLERS[request.sampler].takes_eta:
        yield "eta", useless_eta(request.sampler)
    if request.seed is not None and request.seed + request.n - 1 > LARGEST_SEED:
        yield "seed", f"seed + n - 1 must be at most {LARGEST_SEED}"
    yield from _stream_faults(request)


def _text_faults(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[tuple[str, str]]:
    has_prompt, kind = bool(request.prompt.strip()), KINDS[request.guidance]
    if capabilities.conditions != "text":
        yield from _textless_faults(request, capabilities)
    elif kind.needs == "nothing" and has_prompt:
        yield "prompt", "has no effect with guidance 'none': leave it empty, or take another guidance"
    elif kind.takes_label and has_prompt and request.label is not None:
        yield "prompt", "the classifier is steered by `label` or by the prompt: leave one out"
    elif kind.takes_label and not has_prompt and request.label is None:
        yield "prompt", "the classifier needs a prompt or a `label`"
    elif kind.needs != "nothing" and not kind.takes_label and not has_prompt:
        yield "prompt", f"guidance {request.guidance!r} needs one; an unconditional picture is guidance 'none'"
    if (request.negative_prompt or "").strip() and not kind.takes_negative:
        yield "negative_prompt", _no_effect(request, NEGATIVE_KINDS)


def _no_effect(request: PictureRequest, kinds: str) -> str:
    return f"has no effect with guidance {request.guidance!r}: leave it out, or take {kinds}"


def _textless_faults(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[tuple[str, str]]:
    if request.prompt.strip():
        yield "prompt", "this model reads no text: leave it empty"
    if (request.negative_prompt or "").strip():
        yield "negative_prompt", "this model reads no text: leave it out"
    if capabilities.conditions == "label" and KINDS[request.guidance].needs != "nothing" and request.label is None:
        yield "label", f"guidance {request.guidance!r} needs one; an unconditional picture is guidance 'none'"


def _stream_faults(request: PictureRequest) -> Iterator[tuple[str, str]]:
    if request.partial_images and not request.stream:
        yield "partial_images", "has no effect without `stream`: leave it out, or set `stream`"
    if request.preview_every is not None and not request.stream:
        yield "preview_every", "has no effect without `stream`: leave it out, or set `stream`"
    elif request.preview_every is not None and request.partial_images:
        yield "preview_every", "give this or `partial_images`, not both"


def _label_faults(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[tuple[str, str]]:
    label, count = request.label, len(capabilities.class_names)
    if label is None:
        return
    kind = KINDS[request.guidance]
    is_condition = capabilities.conditions == "label" and kind.needs != "nothing"
    if not kind.takes_label and not is_condition:
        yield "label", _no_effect(request, LABEL_KINDS)
    elif isinstance(label, int) and label >= count:
        yield "label", f"this model has {count} classes, 0 to {count - 1} (found {label})"
    elif isinstance(label, str) and label not in capabilities.class_names:
        yield "label", f"this model knows {', '.join(capabilities.class_names[:20])} (found {label!r})"


def _has_no_scale(request: PictureRequest) -> bool:
    """Whether the guidance has no scale; `direct` accepts 1, which is the scale that an answer shows."""
    kind = KINDS[request.guidance]
    return kind.scale is None and not (kind.sees_prompt and request.guidance_scale == 1.0)


def _guidance(request: PictureRequest, capabilities: ModelCapabilities) -> Guidance:
    """The guidance of the request; the model's defaults fill in what it leaves open."""
    chosen = Guidance.of(request.guidance, **further_settings(request))
    if request.guidance_scale is not None:
        chosen = chosen.at(request.guidance_scale)
    return chosen.over(capabilities.guidance_settings)


def _guidance_faults(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[tuple[str, str]]:
    try:
        _guidance(request, capabilities)
    except InvalidRequest as error:
        yield error.param or "guidance", error.reason


def _strength(request: PictureRequest, inpainted: bool) -> float | None:
    """The share of steps that an edit makes; with a mask all of them, since the mask keeps a part of the picture."""
    if not isinstance(request, EditRequest):
        return None
    return request.strength or (1.0 if inpainted else DEFAULT_STRENGTH)


def _label_index(request: PictureRequest, capabilities: ModelCapabilities) -> int | None:
    return capabilities.class_names.index(request.label) if isinstance(request.label, str) else request.label


def _seeds(request: PictureRequest) -> list[int]:
    first = first_seed(request)
    return [first + offset for offset in range(request.n)]
