"""The abilities of a loaded model version, against which requests are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

Conditions: TypeAlias = Literal["text", "label", "nothing"]


@final
@dataclass(frozen=True)
class ModelCapabilities:
    """A model version as requests see it.

    Attributes:
        model: its registered name.
        version: its number in the registry.
        size: width and height of its pictures, in pixels.
        class_names: values of `label`, in the order of their indices.
        guidance: the kinds of guidance that a request may name.
        guidance_settings: default of each setting of guidance, by name.
        default_steps: default of `num_inference_steps`.
        max_steps: largest `num_inference_steps`.
        conditions: the input of its denoiser: `text`, `label` (in place of a prompt) or `nothing`.
    """

    model: str
    version: str
    size: tuple[int, int]
    class_names: tuple[str, ...]
    guidance: tuple[str, ...]
    guidance_settings: Mapping[str, Any]
    default_steps: int
    max_steps: int
    conditions: Conditions = "text"

    @property
    def size_text(self) -> str:
        """The size as clients write it, for example `64x64`."""
        return f"{self.size[0]}x{self.size[1]}"
