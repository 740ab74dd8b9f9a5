"""Resolves a request against a model: fills in every default, and finds every contradiction.

The schema has checked each field alone; `resolve` checks the fields together, and against the model's capabilities.
A field that changes nothing beside the others is left out, and the answer names it in `without_effect`. A field that
asks for what the model cannot do is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from diffusion_core.strength import DEFAULT_STRENGTH, steps_of_strength
from workflows.errors import InvalidRequest, ModelNotFound
from workflows.options.guidance import Guidance
from workflows.options.samplers import SAMPLERS
from workflows.serve.request.capabilities import ModelCapabilities
from workflows.serve.request.schema import (
    LARGEST_SEED,
    OWN_SCALES,
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
        return _chosen(self.settings.guidance, self.settings.guidance_scale, further_settings(self.settings))

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
        ModelNotFound: the request names another model, or another version of it.
        InvalidRequest: the model cannot serve it; the message names every field at fault, `param` the first.
    """
    _check_model(request, capabilities)
    idle = tuple(_without_effect(request, capabilities))
    request = request.model_copy(
        update={name: type(request).model_fields[name].default for name in idle} | _emptied(idle)
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
        guidance_scale=_scale(guidance),
        prompt=request.prompt.strip(),
        negative_prompt=(request.negative_prompt or "").strip() or None,
        label=None if label is None else capabilities.class_names[label],
        classifier_target=None if not guidance.takes_label else "prompt" if label is None else "label",
        strength=_strength(request, inpainted),
        inpainted=inpainted if isinstance(request, EditRequest) else None,
        without_effect=[*idle, *request.idle],
        **_own_scales(guidance),
        **guidance.further(),
    )
    return ResolvedRequest(settings, label)


def _check_model(request: PictureRequest, capabilities: ModelCapabilities) -> None:
    if request.model is not None and request.model.partition("@")[0] != capabilities.model:
        raise ModelNotFound(
            f"no model {request.model!r} is served here: ask for {capabilities.model!r}, or leave `model` out", "model"
        )
    if request.version not in (None, capabilities.version):
        raise ModelNotFound(
            f"{capabilities.model} is served as version {capabilities.version}, not {request.version}: "
            "leave `version` out, or serve that version",
            "version",
        )


def _without_effect(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[str]:
    """Names of the given fields that change nothing beside the others, in the order of the schema."""
    guidance, reads_text = Guidance.of(request.guidance), capabilities.conditions == "text"
    if request.prompt.strip() and not (reads_text and _needs(guidance)):
        yield "prompt"
    if (request.negative_prompt or "").strip() and not (reads_text and guidance.takes_negative):
        yield "negative_prompt"
    if request.guidance_scale is not None and not any(kind.scale for kind in guidance.rows):
        yield "guidance_scale"
    if request.label is not None and not _takes_label(guidance, capabilities):
        yield "label"
    if request.eta is not None and not SAMPLERS[request.sampler].takes_eta:
        yield "eta"
    if not request.stream:
        yield from (name for name in ("partial_images", "preview_every") if getattr(request, name))
    yield from (name for name in further_settings(request) if name not in guidance.reads)


def _emptied(names: tuple[str, ...]) -> dict[str, str]:
    """The prompt has no default; an empty one is none."""
    return {"prompt": ""} if "prompt" in names else {}


def _needs(guidance: Guidance) -> bool:
    """Whether one of its kinds needs a condition or a judge."""
    return any(kind.needs != "nothing" for kind in guidance.rows)


def _takes_label(guidance: Guidance, capabilities: ModelCapabilities) -> bool:
    return guidance.takes_label or (capabilities.conditions == "label" and _needs(guidance))


def _faults(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[tuple[str, str]]:
    """The fields at fault, in the order of the schema."""
    guidance = Guidance.of(request.guidance)
    yield from _target_faults(request, guidance, capabilities)
    if request.size not in ("auto", capabilities.size_text):
        yield "size", f"this model makes {capabilities.size_text} only (found {request.size!r})"
    if missing := [kind for kind in guidance.kinds if kind not in capabilities.guidance]:
        yield "guidance", f"this model offers {', '.join(capabilities.guidance)} (found {missing[0]!r})"
    yield from _guidance_faults(request, capabilities)
    yield from _label_faults(request, capabilities)
    if request.num_inference_steps is not None and request.num_inference_steps > capabilities.max_steps:
        yield "num_inference_steps", f"at most {capabilities.max_steps} (found {request.num_inference_steps})"
    if request.seed is not None and request.seed + request.n - 1 > LARGEST_SEED:
        yield "seed", f"seed + n - 1 must be at most {LARGEST_SEED}"
    if request.seeds is not None and request.seeds != _seeds(request):
        yield "seeds", "wanted consecutive ones, that begin with `seed` and are `n`: give `seed` and `n` instead"
    if request.preview_every is not None and request.partial_images:
        yield "preview_every", "give this or `partial_images`, not both"


def _target_faults(
    request: PictureRequest, guidance: Guidance, capabilities: ModelCapabilities
) -> Iterator[tuple[str, str]]:
    """Whether it is said, and said once, what to draw."""
    if capabilities.conditions != "text":
        if capabilities.conditions == "label" and _needs(guidance) and request.label is None:
            yield "label", f"guidance {guidance.name!r} needs one; an unconditional picture is guidance 'none'"
        return
    has_prompt = bool(request.prompt.strip())
    # A classifier is steered by a label or the prompt; every other kind reads the prompt.
    by_prompt = any(kind.needs != "nothing" and not kind.takes_label for kind in guidance.rows)
    if by_prompt and not has_prompt:
        yield "prompt", f"guidance {guidance.name!r} needs one; an unconditional picture is guidance 'none'"
    elif guidance.takes_label and not by_prompt and has_prompt and request.label is not None:
        yield "prompt", "the classifier is steered by `label` or by the prompt: leave one out"
    elif guidance.takes_label and not has_prompt and request.label is None:
        yield "prompt", "the classifier needs a prompt or a `label`"


def _label_faults(request: PictureRequest, capabilities: ModelCapabilities) -> Iterator[tuple[str, str]]:
    label, count = request.label, len(capabilities.class_names)
    if isinstance(label, int) and label >= count:
        yield "label", f"this model has {count} classes, 0 to {count - 1} (found {label})"
    elif isinstance(label, str) and label not in capabilities.class_names:
        yield "label", f"this model knows {', '.join(capabilities.class_names[:20])} (found {label!r})"


def _guidance(request: PictureRequest, capabilities: ModelCapabilities) -> Guidance:
    """The guidance of the request; the model's defaults fill in what it leaves open."""
    chosen = _chosen(request.guidance, request.guidance_scale, further_settings(request))
    return chosen.over(capabilities.guidance_settings)


def _chosen(name: str, scale: float | None, settings: Mapping[str, Any]) -> Guidance:
    """The guidance of a name; a scale of its own goes before the scale of all kinds."""
    chosen = Guidance.of(name)
    if scale is not None:
        chosen = chosen.at(scale)
    return chosen.with_settings(**settings)


def _scale(guidance: Guidance) -> float:
    """The scale that an answer shows; of several kinds the first one's, beside `_own_scales`."""
    if len(guidance.kinds) == 1:
        return guidance.scale
    scales = [guidance.settings[kind.scale] for kind in guidance.rows if kind.scale is not None]
    assert isinstance(scales[0], float)
    return scales[0]


def _own_scales(guidance: Guidance) -> dict[str, Any]:
    """The scale of each kind, where there are several."""
    return {} if len(guidance.kinds) == 1 else {name: guidance.settings.get(name) for name in OWN_SCALES}


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
