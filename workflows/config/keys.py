"""Marks of the fields that do not always determine the result of a stage.

A stage's artifact has a key, which is a hash of the configuration that it was made with. A field without a mark is
always part of that key. So a new field is part of it until somebody decides otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, final

T = TypeVar("T")


@final
@dataclass(frozen=True)
class KeyedWhere:
    """Mark of a field that determines the result only where this is true of its section."""

    holds: Callable[[Any], bool]


_NOWHERE: Final = KeyedWhere(lambda _: False)
Unkeyed = Annotated[T, _NOWHERE]
"""A field that does not change the result: a finished stage stays finished, and a stopped one goes on."""
