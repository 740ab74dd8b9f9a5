"""Fields of pydantic models, one for each row of the tables of guidance."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from workflows.options.guidance import DEFAULT_SCALES, SCALED, SETTINGS, Setting


def setting_type(setting: Setting) -> Any:
    """The type of a setting's value, with its bounds: `float`, `bool`, or a list of two numbers."""
    if setting.form == "flag":
        return bool
    high = setting.high if math.isfinite(setting.high) else None
    number: Any = Annotated[float, Field(ge=setting.low, le=high, allow_inf_nan=False)]
    return Annotated[list[number], Field(min_length=2, max_length=2)] if setting.form == "interval" else number


def guidance_fields(base: type[BaseModel], name: str, *, scales: bool = True) -> Any:
    """A model with one field for each setting of guidance; scales have their defaults, all others are absent.

    Args:
        base: of the model.
        name: of the model.
        scales: whether the scales of the kinds are among the fields.
    """
    fields: dict[str, Any] = {}
    for setting in SETTINGS.values():
        if setting.name in DEFAULT_SCALES:
            if scales:
                default = DEFAULT_SCALES[setting.name]
                fields[setting.name] = (setting_type(setting), Field(default, description=setting.description))
        else:
            fields[setting.name] = (setting_type(setting) | None, Field(None, description=setting.description))
    return create_model(name, __base__=base, **fields)


def sweep_fields(base: type[BaseModel], name: str) -> Any:
    """A model with one field for each kind of guidance that has a scale: the scales that a sweep measures."""
    fields: dict[str, Any] = {
        f"{kind.scale}s": (tuple[float, ...], Field(kind.swept, description=f"Scales of {kind.title} guidance."))
        for kind in SCALED
    }
    return create_model(name, __base__=base, **fields)
