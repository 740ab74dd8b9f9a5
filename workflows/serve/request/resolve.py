"""From a request to an order: every default filled in, every contradiction found.

The schema has judged each field alone; here they are judged together, and by what the model can do.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

from diffusion_core.strength import DEFAULT_STRENGTH, steps_of_strength
from workflows.errors import InvalidRequest, ModelNotFound
from workflows.serve.request.schema import LARGEST_SEED, EditRequest, GenerationSettings, Guidance, PictureRequest

# Seeds that the service draws are exact in any JSON reader, also in one that knows doubles only.
_SEED_BITS: Final = 48


Conditions: TypeAlias = Literal["text", "label", "nothing"]


@final
@dataclass(frozen=True)
class Menu:
    """What the loaded model offers.

    Attributes:
        model: its registered name.
        version: its number in the registry.
        size: width and height of its pictures.
        class_names: values of `label`, in the order of their indices.
        scales: default `guidance_scale` of each kind of guidance that has one; kinds that the model lacks are absent.
        num_steps: default of `num_inference_steps`.
        max_steps: its limit.
        conditions: what its denoiser reads: `text`, `label` (in place of a prompt) or `nothing`.
    """

    model: str
    version: str
    size: tuple[int, int]
    class_names: tuple[str, ...]
    scales: dict[Guidance, float]
    num_steps: int
    max_steps: int
    conditions: Conditions = "text"

    @property
    def guidance(self) -> list[Guidance]:
        """All kinds that may be asked for."""
        return ["none", *(["direct"] if self.conditions != "nothing" else []), *self.scales]  # type: ignore[list-item]

    @property
    def size_text(self) -> str:
        """The size as clients write it."""
        return f"{self.size[0]}x{self.size[1]}"


@final
@dataclass(frozen=True)
class Order:
    """A request that can be served: `settings` say all, `label` is the index of the class or None."""

    settings: GenerationSettings
    label: int | None

    @property
    def texts(self) -> tuple[str, ...]:
        """What has to be encoded: the prompt if any, then the negative prompt if any."""
        return tuple(text for text in (self.settings.prompt, self.settings.negative_prompt) if text)


def drawn_seed(request: PictureRequest) -> int:
    """The seed of the first picture: the client's, or a random one."""
    return secrets.randbits(_SEED_BITS) if request.seed is None else request.seed


def steps_made(settings: GenerationSettings) -> int:
    """How many of its steps an order makes: an edit skips the first ones."""
    if settings.strength is None:
        return settings.num_inference_steps
    return steps_of_strength(settings.strength, settings.num_inference_steps)


def preview_marks(request: PictureRequest, steps: int) -> tuple[int, ...]:
    """The numbers of remaining steps at which the client wants to see something.

    Args:
        request: which previews.
        steps: that will be made.
    """
    if not request.stream:
        return ()
    if request.preview_every is not None:
        return tuple(range(steps - request.preview_every, 0, -request.preview_every))
    count = request.partial_images or 0
    marks = {steps - round(steps * part / (count + 1)) for part in range(1, count + 1)}
    return tuple(sorted(marks - {0, steps}, reverse=True))


def take_order(request: PictureRequest, menu: Menu, *, inpainted: bool = False) -> Order:
    """Fills in what the request leaves open.

    Args:
        request: as the client sent it.
        menu: of the version that will make the pictures.
        inpainted: whether an edit came with a mask.

    Raises:
        ModelNotFound: it asks for another model.
        InvalidRequest: it cannot be served; the message names every field at fault, `param` the first.
    """
    if request.model is not None and request.model.partition("@")[0] != menu.model:
        raise ModelNotFound(f"no model {request.model!r} is served here: ask for {menu.model!r}, or leave `model` out")
    faults = list(_faults(request, menu))
    if faults:
        raise InvalidRequest("; ".join(f"{name}: {text}" for name, text in faults), faults[0][0])
    label = _label_index(request, menu)
    settings = GenerationSettings(
        model=menu.model,
        version=menu.version,
        seeds=_seeds(request),
        size=menu.size_text,
        sampler=request.sampler,
        num_inference_steps=request.num_inference_steps or menu.num_steps,
        eta=(request.eta or 0.0) if request.sampler == "ddim" else None,
        guidance=request.guidance,
        guidance_scale=_scale(request, menu),
        prompt=request.prompt.strip(),
        negative_prompt=(request.negative_prompt or "").strip() or None,
        label=None if label is None else menu.class_names[label],
        strength=_strength(request, inpainted),
        inpainted=inpainted if isinstance(request, EditRequest) else None,
        without_effect=list(request.without_effect),
    )
    return Order(settings, label)


def _faults(request: PictureRequest, menu: Menu) -> Iterator[tuple[str, str]]:
    """The fields at fault, in the order of the schema."""
    yield from _text_faults(request, menu)
    if request.size not in ("auto", menu.size_text):
        yield "size", f"this model makes {menu.size_text} only (found {request.size!r})"
    if request.guidance not in menu.guidance:
        yield "guidance", f"this model offers {', '.join(menu.guidance)} (found {request.guidance!r})"
    if request.guidance_scale is not None and _has_no_scale(request):
        yield "guidance_scale", f"has no effect with guidance {request.guidance!r}: leave it out"
    yield from _label_faults(request, menu)
    if request.num_inference_steps is not None and request.num_inference_steps > menu.max_steps:
        yield "num_inference_steps", f"at most {menu.max_steps} (found {request.num_inference_steps})"
    if request.eta is not None and request.sampler != "ddim":
        yield "eta", f"has no effect with sampler {request.sampler!r}: leave it out, or take `ddim`"
    if request.seed is not None and request.seed + request.n - 1 > LARGEST_SEED:
        yield "seed", f"seed + n - 1 must be at most {LARGEST_SEED}"
    yield from _stream_faults(request)


def _text_faults(request: PictureRequest, menu: Menu) -> Iterator[tuple[str, str]]:
    prompted = bool(request.prompt.strip())
    if menu.conditions != "text":
        yield from _wordless_faults(request, menu)
    elif request.guidance == "none" and prompted:
        yield "prompt", "has no effect with guidance 'none': leave it empty, or take another guidance"
    elif request.guidance == "classifier" and prompted and request.label is not None:
        yield "prompt", "the classifier is steered by `label` or by the prompt: leave one out"
    elif request.guidance == "classifier" and not prompted and request.label is None:
        yield "prompt", "the classifier needs a prompt or a `label`"
    elif request.guidance not in ("none", "classifier") and not prompted:
        yield "prompt", f"guidance {request.guidance!r} needs one; an unconditional picture is guidance 'none'"
    if (request.negative_prompt or "").strip() and request.guidance != "classifier_free":
        yield "negative_prompt", f"has no effect with guidance {request.guidance!r}: leave it out, or take another"


def _wordless_faults(request: PictureRequest, menu: Menu) -> Iterator[tuple[str, str]]:
    if request.prompt.strip():
        yield "prompt", "this model reads no text: leave it empty"
    if (request.negative_prompt or "").strip():
        yield "negative_prompt", "this model reads no text: leave it out"
    if menu.conditions == "label" and request.guidance != "none" and request.label is None:
        yield "label", f"guidance {request.guidance!r} needs one; an unconditional picture is guidance 'none'"


def _stream_faults(request: PictureRequest) -> Iterator[tuple[str, str]]:
    if request.partial_images and not request.stream:
        yield "partial_images", "has no effect without `stream`: leave it out, or set `stream`"
    if request.preview_every is not None and not request.stream:
        yield "preview_every", "has no effect without `stream`: leave it out, or set `stream`"
    elif request.preview_every is not None and request.partial_images:
        yield "preview_every", "give this or `partial_images`, not both"


def _label_faults(request: PictureRequest, menu: Menu) -> Iterator[tuple[str, str]]:
    label, count = request.label, len(menu.class_names)
    if label is None:
        return
    seen = menu.conditions == "label" and request.guidance != "none"
    if request.guidance != "classifier" and not seen:
        yield "label", f"has no effect with guidance {request.guidance!r}: leave it out, or take 'classifier'"
    elif isinstance(label, int) and label >= count:
        yield "label", f"this model has {count} classes, 0 to {count - 1} (found {label})"
    elif isinstance(label, str) and label not in menu.class_names:
        yield "label", f"this model knows {', '.join(menu.class_names[:20])} (found {label!r})"


def _has_no_scale(request: PictureRequest) -> bool:
    return request.guidance == "none" or (request.guidance == "direct" and request.guidance_scale != 1.0)


def _scale(request: PictureRequest, menu: Menu) -> float:
    """What `direct` and `none` come to: the plain model's scale of 1, and none."""
    if request.guidance_scale is not None:
        return request.guidance_scale
    return menu.scales.get(request.guidance, 1.0 if request.guidance == "direct" else 0.0)


def _strength(request: PictureRequest, inpainted: bool) -> float | None:
    """A mask says what to keep, so all else is made from the start; without one, something must be left to see."""
    if not isinstance(request, EditRequest):
        return None
    return request.strength or (1.0 if inpainted else DEFAULT_STRENGTH)


def _label_index(request: PictureRequest, menu: Menu) -> int | None:
    return menu.class_names.index(request.label) if isinstance(request.label, str) else request.label


def _seeds(request: PictureRequest) -> list[int]:
    first = drawn_seed(request)
    return [first + place for place in range(request.n)]
