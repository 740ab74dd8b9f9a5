"""Fields of pydantic models, one for each row of the tables of guidance."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, create_model

from workflows.options.guidance import DEFAULT_SCALES, SCALED, SETTINGS, GuidanceKind, Setting


def setting_type(setting: Setting) -> Any:
    """The type of a setting's value, with its bounds: `float`, `bool`, or a list of two numbers."""
    high = setting.high if math.isfinite(setting.high) else None
    number: Any = Annotated[float, Field(ge=setting.low, le=high, allow_inf_nan=False)]
    two_numbers: Any = Annotated[list[number], Field(min_length=2, max_length=2)]
    value = {"number": number, "flag": bool, "interval": two_numbers}[setting.form]
    return Annotated[value, WrapValidator(partial(_in_our_words, setting))]


def _in_our_words(setting: Setting, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError(setting.fault(value)) from None


def scales_type(kind: GuidanceKind) -> Any:
    """The type of a list of scales of a kind that has one."""
    assert kind.scale is not None
    scale: Any = setting_type(SETTINGS[kind.scale])
    return tuple[scale, ...]


def guidance_fields(base: type[BaseModel], name: str, *, scales: bool = True) -> Any:
    """A model with one field for each setting of guidance that the base lacks; all but scales are absent by default.

    Args:
        base: of the model.
        name: of the model.
        scales: whether the scales of the kinds have their defaults, or are absent as the others are.
    """
    fields: dict[str, Any] = {}
    for setting in SETTINGS.values():
        if setting.name in base.model_fields:
            continue
        if scales and setting.name in DEFAULT_SCALES:
            default = DEFAULT_SCALES[setting.name]
            fields[setting.name] = (setting_type(setting), Field(default, description=setting.description))
        else:
            fields[setting.name] = (setting_type(setting) | None, Field(None, description=setting.description))
    return create_model(name, __base__=base, **fields)


def sweep_fields(base: type[BaseModel], name: str) -> Any:
    """A model with one field for each kind of guidance that has a scale: the scales that a sweep measures."""
    fields: dict[str, Any] = {
        f"{kind.scale}s": (scales_type(kind), Field(kind.swept, description=f"Scales of {kind.title} guidance."))
        for kind in SCALED
    }
    return create_model(name, __base__=base, **fields)
