"""The bodies of HTTP requests and answers: OpenAI's images shape, with the fields of diffusion.

A field that cannot change the picture accepts only values that change nothing; any other value, and any unknown field,
is refused by name. `null` means absent. Docstrings and descriptions here are the text of the OpenAPI document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from diffusion_core.strength import DEFAULT_STRENGTH
from workflows.errors import InvalidRequest
from workflows.options.fields import guidance_fields, setting_type
from workflows.options.guidance import (
    DEFAULT_GUIDANCE,
    FURTHER_NAMES,
    KINDS,
    LABEL_KINDS,
    NEGATIVE_KINDS,
    SCALE_NAMES,
    SETTINGS,
    Guidance,
    KindName,
)
from workflows.options.samplers import DEFAULT_SAMPLER, ETA_READERS, SamplerName

LARGEST_SEED: Final = 2**64 - 1
MOST_PARTIAL_IMAGES: Final = 3
_NO_EFFECT: Final = "Accepted for compatibility; it has no effect."
_TOLD: Final = "Part of an answer's settings, which may be sent back; it has no effect."

Seed: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
if TYPE_CHECKING:
    Scale: TypeAlias = float
else:
    Scale = setting_type(SETTINGS["guidance_scale"])
Label: TypeAlias = Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=0)]


def _guidance_name(value: str) -> str:
    """The kinds in the table's order; a fault is told in the table's words."""
    try:
        return Guidance.of(value).name
    except InvalidRequest as error:
        raise ValueError(error.reason) from None


GuidanceName: TypeAlias = Annotated[str, Field(max_length=200), AfterValidator(_guidance_name)]
OWN_SCALES: Final = tuple(name for name in SCALE_NAMES if name != "guidance_scale")
"""The scales of single kinds, for guidance that joins several."""


class _PictureFields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str = Field(max_length=4000, description="What to draw; empty for `none`, and with `label`.")
    model: str | None = Field(
        None,
        max_length=200,
        description="A name from `GET /v1/models`, `NAME@challenger` for its challenger; default: the first.",
    )
    n: int = Field(1, ge=1, le=10, description="Number of pictures.")
    size: str = Field(
        "auto", pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$", description="WIDTHxHEIGHT that the model makes, or `auto`."
    )
    response_format: Literal["b64_json", "url"] = Field("b64_json", description="`url`: a `data:` URL.")

    negative_prompt: str | None = Field(None, max_length=4000, description=f"What to avoid ({NEGATIVE_KINDS}).")
    guidance: GuidanceName = Field(
        DEFAULT_GUIDANCE.name,
        description="; ".join(f"`{kind.name}`: {kind.description}" for kind in KINDS.values())
        + "; or several of them, joined by `+`.",
        examples=[*KINDS, "classifier_free+clip"],
    )
    guidance_scale: Scale | None = Field(
        None,
        description="Strength of each kind that has no scale of its own here; for `classifier_free`, 1 is `direct`.",
    )
    label: Label | None = Field(None, description=f"A class by name or index ({LABEL_KINDS}).")
    sampler: SamplerName = Field(DEFAULT_SAMPLER, description="How to step.")
    num_inference_steps: int | None = Field(None, ge=1, description="Steps; default and limit: the service's.")
    eta: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description=f"Noise of {ETA_READERS}: 0 none, 1 as DDPM."
    )
    seed: Seed | None = Field(None, description="Of the first picture, the next has seed + 1, ..")

    version: str | None = Field(
        None,
        max_length=20,
        pattern="^[0-9]+$",
        description="Only this version may answer; default: any that is served.",
    )
    seeds: list[Seed] | None = Field(
        None, min_length=1, max_length=10, description="As an answer tells them: stands for `seed` and `n`."
    )
    classifier_target: Literal["label", "prompt"] | None = Field(None, description=_TOLD)
    inpainted: bool | None = Field(None, description=_TOLD)
    without_effect: list[str] | None = Field(None, max_length=100, description=_TOLD)
    prompt_tokens_cut: int | None = Field(None, description=_TOLD)
    negative_prompt_tokens_cut: int | None = Field(None, description=_TOLD)

    user: str | None = Field(None, max_length=1000, description=_NO_EFFECT)
    safety_identifier: str | None = Field(None, max_length=1000, description=_NO_EFFECT)
    quality: Literal["auto", "standard"] | None = Field(None, description=_NO_EFFECT)
    style: Literal["vivid"] | None = Field(None, description=_NO_EFFECT)
    background: Literal["auto", "opaque"] | None = Field(None, description=_NO_EFFECT)
    moderation: Literal["auto", "low"] | None = Field(None, description=_NO_EFFECT)
    output_format: Literal["png"] | None = Field(None, description=_NO_EFFECT)
    output_compression: Literal[100] | None = Field(None, description=_NO_EFFECT)

    stream: bool = Field(False, description="Answer with server-sent events, the last of which holds the picture.")
    partial_images: int | None = Field(
        None, ge=0, le=MOST_PARTIAL_IMAGES, description="Previews on the way, evenly spread (`stream`)."
    )
    preview_every: int | None = Field(None, ge=1, description="A preview after every so many steps (`stream`).")
    deadline_seconds: float | None = Field(
        None, gt=0, le=86400, allow_inf_nan=False, description="Refuse, or give up, what takes longer than this."
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        if isinstance(seeds := given.get("seeds"), list) and seeds:
            given = {"seed": seeds[0], "n": len(seeds)} | given
        return given

    @property
    def idle(self) -> tuple[str, ...]:
        """Names of the fields that the client sent and that change nothing."""
        names = (name for name, field in type(self).model_fields.items() if field.description == _NO_EFFECT)
        return tuple(name for name in names if getattr(self, name) is not None)


class _SettingsFields(BaseModel):
    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    seeds: list[int]
    size: str
    sampler: SamplerName
    num_inference_steps: int
    eta: float | None = Field(None, description=f"Of {ETA_READERS} only.")
    guidance: str = Field(description="One kind, or several joined by `+`.")
    guidance_scale: float = Field(description="Of several kinds, that of the first one that has a scale.")
    prompt: str
    negative_prompt: str | None = None
    label: str | None = None
    classifier_target: Literal["label", "prompt"] | None = Field(
        None, description="Of `classifier` only: what it steers towards."
    )
    strength: float | None = Field(None, description="Of edits only: the share of the steps that was made.")
    inpainted: bool | None = Field(None, description="Of edits only: whether a mask said what to keep.")
    prompt_tokens_cut: int | None = Field(None, description="Tokens at the prompt's end that the model did not read.")
    negative_prompt_tokens_cut: int | None = Field(None, description="The same of the negative prompt.")
    without_effect: list[str] = Field(default=[], description="Given fields that changed nothing.")


if TYPE_CHECKING:
    _RequestBase = _PictureFields
    _SettingsBase = _SettingsFields
else:
    _RequestBase = guidance_fields(_PictureFields, "PictureRequestFields", scales=False)
    _SettingsBase = guidance_fields(_SettingsFields, "GenerationSettingsFields", scales=False)


class PictureRequest(_RequestBase):
    """The fields that both routes of pictures share; the last are those of `workflows.options.guidance.SETTINGS`."""


@final
class GenerationRequest(PictureRequest):
    """The body of `POST /v1/images/generations`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a handwritten seven", "n": 2, "seed": 7},
                {"prompt": "a handwritten seven", "guidance_scale": 3.0, "stream": True, "partial_images": 2},
            ]
        }
    )


@final
class EditRequest(PictureRequest):
    """The text parts of `POST /v1/images/edits`; a form knows text only, so numbers are read from it."""

    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)

    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the steps that are made; 1 forgets nearly all of the picture. Default: 1 with a mask, "
        f"else {DEFAULT_STRENGTH}.",
    )
    input_fidelity: Literal["low"] | None = Field(None, description=_NO_EFFECT)


@final
class Image(BaseModel):
    """One picture, in the form that `response_format` asks for."""

    b64_json: str | None = Field(None, description="A PNG file, base64.")
    url: str | None = Field(None, description="The same as a `data:` URL.")
    seed: int = Field(description="Gives this picture again, with the same settings and version.")


@final
class GenerationSettings(_SettingsBase):
    """All that determines the pictures, defaults included."""


def further_settings(fields: PictureRequest | GenerationSettings) -> dict[str, Any]:
    """The settings of guidance that a request or an answer holds beside `guidance_scale`, by name."""
    found = {name: getattr(fields, name) for name in (*OWN_SCALES, *FURTHER_NAMES)}
    return {name: value for name, value in found.items() if value is not None}


@final
class Usage(BaseModel):
    """OpenAI's count of tokens; this service counts none."""

    input_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}
    output_tokens: int = 0
    total_tokens: int = 0


@final
class GenerationAnswer(BaseModel):
    """The body of a successful answer."""

    created: int = Field(description="Unix time in seconds.")
    data: list[Image]
    size: str = Field(description="WIDTHxHEIGHT of the pictures.")
    output_format: Literal["png"] = "png"
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    usage: Usage = Usage()
    settings: GenerationSettings = Field(description="All that determines the pictures; it may be sent back as a body.")


@final
class ModelCard(BaseModel):
    """One entry of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which this version was loaded, in seconds.")
    owned_by: str = "raverse"
    version: str
    sizes: list[str]
    channels: int = Field(description="1: gray, 3: colour.")
    classes: list[str] = Field(description="Values of `label`, in the order of their indices.")
    guidance: list[KindName]
    example_prompts: list[str]
    default_steps: int
    max_steps: int
    guidance_settings: dict[str, float | bool | list[float]] = Field(
        default={}, description="What each setting of guidance is where a request leaves it out."
    )
    max_prompt_tokens: int | None = Field(
        None, description="Tokens of a prompt that the model reads; more are cut off."
    )


@final
class ModelList(BaseModel):
    """The body of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@final
class StreamEvent(BaseModel):
    """One server-sent event: a preview, or a finished picture."""

    type: str = Field(description="`image_generation.partial_image`, `image_generation.completed`, or `image_edit....`")
    b64_json: str = Field(description="A PNG file, base64.")
    created_at: int = Field(description="Unix time in seconds.")
    size: str
    output_format: Literal["png"] = "png"
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    seed: int = Field(description="Of this picture; tells the pictures of one request apart.")
    step: int = Field(description="Steps made so far.")
    partial_image_index: int | None = None
    usage: Usage | None = None
    settings: GenerationSettings | None = None


@final
class Health(BaseModel):
    """The body of `GET /healthz`."""

    status: Literal["ok"] = "ok"
    model: str
    version: str
