"""What each row is asked to show, and how strongly: batch first, so rows join and leave freely.

A row holds any of: `tokens` (CLIP's per-position features, with `mask`), `pooled` (one vector), `label`.
`present` says whether the denoiser may see them: a null row keeps its target, so that a classifier can
still steer an unconditional denoiser towards it. `negative` is what classifier-free guidance moves away
from, `settings` are the numbers that the guidance wrappers read, one per row (NaN: the row does not say).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusion_core.errors import InvalidCondition

_Derived = TypeVar("_Derived")

NO_LABEL = -1
"""The label of a row that has none."""


@dataclass(frozen=True, eq=False)
class Condition:
    """The targets of `b` rows.

    Attributes:
        present: whether the denoiser sees the row's target, bool `(b,)`.
        tokens: text features `(b, n, d)`, or None.
        mask: which of the n positions hold text, bool `(b, n)`; None: all.
        pooled: one vector per row, `(b, e)`, or None.
        label: class index, int64 `(b,)`, -1 where there is none; or None.
        negative: what to move away from, another condition of `b` rows; None: the null condition.
        settings: guidance numbers by name, float64 `(b,)`, on the CPU.

    Raises:
        InvalidCondition: the parts disagree on the number of rows, or have other shapes.
    """

    present: Bool[Tensor, "b"]
    tokens: Float[Tensor, "b n d"] | None = None
    mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b e"] | None = None
    label: Int[Tensor, "b"] | None = None
    negative: Condition | None = None
    settings: Mapping[str, Float[Tensor, "b"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dims in (("present", 1), ("tokens", 3), ("mask", 2), ("pooled", 2), ("label", 1)):
            value = getattr(self, name)
            if value is not None and (value.dim() != dims or len(value) != self.num_rows):
                raise InvalidCondition(
                    f"{name} has shape {tuple(value.shape)}, wanted {dims} axes and {self.num_rows} rows"
                )
        if self.mask is not None and (self.tokens is None or self.mask.shape != self.tokens.shape[:2]):
            raise InvalidCondition(f"mask {tuple(self.mask.shape)} has no tokens of that many rows and positions")
        if self.negative is not None and self.negative.num_rows != self.num_rows:
            raise InvalidCondition(f"negative has {self.negative.num_rows} rows, wanted {self.num_rows}")
        for name, value in self.settings.items():
            if value.shape != (self.num_rows,):
                raise InvalidCondition(f"setting {name} has shape {tuple(value.shape)}, wanted ({self.num_rows},)")

    @classmethod
    def of(
        cls,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        label: Tensor | Sequence[int] | None = None,
    ) -> Condition:
        """Rows that the denoiser sees, with as many rows as the first part given."""
        labels = None if label is None else torch.as_tensor(label, dtype=torch.int64)
        first = next((part for part in (tokens, pooled, labels) if part is not None), None)
        if first is None:
            raise InvalidCondition("no tokens, pooled vector or label given: use Condition.null(b) for no condition")
        return cls(torch.ones(len(first), dtype=torch.bool, device=first.device), tokens, mask, pooled, labels)

    @classmethod
    def null(cls, num_rows: int, device: torch.device | str | None = None) -> Condition:
        """Rows without any target."""
        return cls(torch.zeros(num_rows, dtype=torch.bool, device=device))

    @property
    def num_rows(self) -> int:
        """The batch size b."""
        return len(self.present)

    def hidden(self, rows: Bool[Tensor, "b"] | None = None) -> Condition:
        """Hides the chosen rows' targets from the denoiser (all rows if None): caption dropout, or the null pass."""
        if rows is None:
            return replace(self, present=torch.zeros_like(self.present))
        return replace(self, present=self.present & ~rows.to(self.present.device))

    def with_settings(self, **settings: float | Tensor | Sequence[float]) -> Condition:
        """Sets guidance numbers, one for all rows or one per row."""
        table = {
            name: torch.as_tensor(value, dtype=torch.float64).cpu().expand(self.num_rows).clone()
            for name, value in settings.items()
        }
        return replace(self, settings={**self.settings, **table})

    def setting(self, name: str, default: float) -> Float[Tensor, "b"]:
        """The rows' numbers under this name, float64 on the CPU, `default` where a row does not say."""
        value = self.settings.get(name)
        if value is None:
            return torch.full((self.num_rows,), default, dtype=torch.float64)
        return torch.where(value.isnan(), default, value)

    def rows(self, index: Tensor | slice) -> Condition:
        """The chosen rows, by slice or integer indices, in that order."""
        return _mapped(self, lambda part: part[index if isinstance(index, slice) else index.to(part.device)])

    def with_rows(self, index: Tensor, other: Condition) -> Condition:
        """Takes the rows at these integer indices from another condition of as many rows."""
        order = torch.arange(self.num_rows)
        order[index.cpu()] += self.num_rows
        return Condition.cat([self, other]).rows(order)

    def derived(self, key: object, make: Callable[[], _Derived]) -> _Derived:
        """What `make` reckons from this condition alone, reckoned once: a condition never changes.

        Args:
            key: whose reckoning it is.
            make: called the first time.
        """
        known: dict[object, _Derived] = self.__dict__.setdefault("_derived", {})
        if key not in known:
            known[key] = make()
        return known[key]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """Moves targets to a device and casts the real-valued ones; settings stay on the CPU in float64."""

        def move(part: Tensor) -> Tensor:
            return part.to(device, dtype) if part.is_floating_point() else part.to(device)

        return replace(_mapped(self, move), settings=self.settings)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Stacks rows; parts that some conditions lack are filled with absent entries.

        Raises:
            InvalidCondition: text features of different widths.
        """
        if len(conditions) == 1:
            return conditions[0]
        if not conditions:
            raise InvalidCondition("no conditions given: wanted at least one row")
        negatives = [part.negative for part in conditions]
        negative = None
        if any(part is not None for part in negatives):
            negative = Condition.cat([n or c.hidden() for n, c in zip(negatives, conditions, strict=True)])
        tokens, mask = _cat_tokens(conditions)
        names = dict.fromkeys(name for part in conditions for name in part.settings)
        unsaid = torch.full((1,), math.nan, dtype=torch.float64)
        return Condition(
            torch.cat([part.present for part in conditions]),
            tokens,
            mask,
            _cat_filled([part.pooled for part in conditions], conditions, 0.0, "pooled"),
            _cat_filled([part.label for part in conditions], conditions, NO_LABEL, "label"),
            negative,
            {
                name: torch.cat([part.settings.get(name, unsaid.expand(part.num_rows)) for part in conditions])
                for name in names
            },
        )


def _mapped(condition: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    """Changes every tensor, those of the negative condition and the settings included."""

    def apply(value: object) -> object:
        if isinstance(value, Condition):
            return _mapped(value, change)
        return change(value) if isinstance(value, Tensor) else value

    parts = {part.name: apply(getattr(condition, part.name)) for part in fields(condition) if part.name != "settings"}
    settings = {name: change(value) for name, value in condition.settings.items()}
    return Condition(**parts, settings=settings)  # type: ignore[arg-type]


def _cat_tokens(conditions: Sequence[Condition]) -> tuple[Tensor | None, Tensor | None]:
    """Pads every condition to the longest text, with a mask that says so."""
    present = [part.tokens for part in conditions if part.tokens is not None]
    if not present:
        return None, None
    length = max(part.shape[1] for part in present)
    uniform = len(present) == len(conditions) and all(part.shape[1] == length for part in present)
    if len({part.shape[2] for part in present}) > 1:
        raise InvalidCondition(f"tokens of widths {sorted({part.shape[2] for part in present})} cannot share a batch")
    masks = [part.mask for part in conditions if part.mask is not None]
    if uniform and len(masks) in (0, len(conditions)):
        return torch.cat(present), torch.cat(masks) if masks else None
    padded = [_padded(part, length, present[0]) for part in conditions]
    return torch.cat([tokens for tokens, _ in padded]), torch.cat([mask for _, mask in padded])


def _padded(part: Condition, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    tokens = like.new_zeros(part.num_rows, length, like.shape[2])
    mask = torch.zeros(part.num_rows, length, dtype=torch.bool, device=like.device)
    if part.tokens is not None:
        tokens[:, : part.tokens.shape[1]] = part.tokens
        mask[:, : part.tokens.shape[1]] = True if part.mask is None else part.mask
    return tokens, mask


def _cat_filled(
    parts: Sequence[Tensor | None], rows: Sequence[Condition], fill: int | float, name: str
) -> Tensor | None:
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    widths = {tuple(part.shape[1:]) for part in parts if part is not None}
    if len(widths) > 1:
        raise InvalidCondition(f"{name} of widths {sorted(widths)} cannot share a batch")
    filled = [
        part if part is not None else like.new_full((owner.num_rows, *like.shape[1:]), cast(int, fill))
        for part, owner in zip(parts, rows, strict=True)
    ]
    return torch.cat(filled)
