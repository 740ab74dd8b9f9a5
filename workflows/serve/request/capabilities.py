"""The abilities of a loaded model version, against which requests are checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from workflows.serve.request.schema import Guidance

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
        scales: default `guidance_scale` by kind of guidance; it holds the kinds that have a scale and that the model
            offers.
        default_steps: default of `num_inference_steps`.
        max_steps: largest `num_inference_steps`.
        conditions: the input of its denoiser: `text`, `label` (in place of a prompt) or `nothing`.
    """

    model: str
    version: str
    size: tuple[int, int]
    class_names: tuple[str, ...]
    scales: dict[Guidance, float]
    default_steps: int
    max_steps: int
    conditions: Conditions = "text"

    @property
    def guidance(self) -> list[Guidance]:
        """All kinds of guidance that a request may name."""
        return ["none", *(["direct"] if self.conditions != "nothing" else []), *self.scales]  # type: ignore[list-item]

    @property
    def size_text(self) -> str:
        """The size as clients write it, for example `64x64`."""
        return f"{self.size[0]}x{self.size[1]}"
