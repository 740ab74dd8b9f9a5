"""Pydantic's findings about a value, in a few words for users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from workflows.errors import InvalidRequest

_LONGEST: Final = 60
_PLAIN: Final = {"missing": "missing", "extra_forbidden": "unknown key"}


def describe(fault: Mapping[str, Any]) -> str:
    """The message of a fault without its place.

    Args:
        fault: one of pydantic's list of errors. A `ValueError` of our own says by itself what was found, so the value,
            which may be a whole section or hold a password, is not repeated.
    """
    if fault["type"] in _PLAIN:
        return _PLAIN[fault["type"]]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequest):
        return cause.reason
    if isinstance(cause, ValueError):
        return str(cause)
    text = repr(fault.get("input"))
    return f"{fault['msg']} (found {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'})"


def place(fault: Mapping[str, Any]) -> str:
    """The path of the field at fault, with dots; of a fault of a whole section, that of the field which it names."""
    cause = fault.get("ctx", {}).get("error")
    parts = [str(part) for part in fault["loc"]]
    if isinstance(cause, InvalidRequest) and cause.param and parts[-1:] != [cause.param]:
        parts.append(cause.param)
    return ".".join(parts)
