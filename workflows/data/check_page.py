"""The report of `raverse data check` as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from workflows.data.sources import SOURCES
from workflows.runtime.templates import template

_WIDEST: Final = 120
_SIZES: Final = ("width", "height", "aspect_ratio", "smaller_than_wanted")
_UNUSABLE: Final = "Cannot be used"


def page(report: Mapping[str, Any], thumbnails: Mapping[str, Sequence[Mapping[str, str]]], *, usable: bool) -> str:
    """The whole page.

    Args:
        report: of `check_data`.
        thumbnails: of `check_data`; pictures are data URLs.
        usable: whether the job would accept these data.
    """
    return template("workflows.data", "check.html").render(
        path=report["path"],
        usable=usable,
        verdict=verdict(report, usable=usable),
        tables={
            title: [(_short(str(name)), value) for name, value in values.items()]
            for title, values in tables(report).items()
        },
        unusable=_UNUSABLE,
        examples=report["unusable_examples"],
        thumbnails=thumbnails["seen"],
        refused=thumbnails["refused"],
        changed=thumbnails["changed"],
        mixture=report["mixture"],
        next=report["next"],
        training=report.get("training", ()),
    )


def verdict(report: Mapping[str, Any], *, usable: bool) -> str:
    """Whether the job would accept these data, in a sentence."""
    bad = report["records"] - report["usable"]
    broken = f"{bad} of {report['records']} records cannot be used"
    if usable:
        return (
            f"These data can be used; {broken}." if bad else f"These data can be used: all {report['records']} records."
        )
    return f"These data cannot be used as they are: {broken}."


def tables(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a reader is told, by title: names and values; a table may be empty."""
    captions, intake = report["captions"], SOURCES[report["format"]].intake
    facts = {name: report[name] for name in intake.facts if name in report}
    overview = {
        "format": report["format"],
        "records looked at": f"{report['records']}{'' if report['complete'] else ' (a sample)'}",
        "usable": report["usable"],
        "joined to a picture seen before": report["joined"],
        f"duplicate {intake.counted}": report["duplicate_images"],
        "captions": f"{captions['total']}, of which {captions['distinct']} differ",
        f"captions over {captions['context_length']} tokens": _cut(captions),
    }
    overview |= {name.replace("_", " "): _worded(facts[name]) for name in _SIZES if name in facts}
    return {
        "Overview": overview,
        "Columns of numbers": {name: _range(span) for name, span in facts.get("columns", {}).items()},
        _UNUSABLE: report["unusable"],
        "Used with a change": report["changed"],
        "How to mend them": report["remedies"],
        "Modes": facts.get("modes", {}),
        "File formats": facts.get("formats", {}),
        "Labels": report["labels"],
        "Most common captions": captions["most_common"],
    }


def _cut(captions: Mapping[str, Any]) -> str:
    """How many captions the text tower does not read to their end, and the option that lets it."""
    if not captions["over_context_length"]:
        return "0"
    share = captions["over_context_length"] / captions["total"]
    longest = captions["longest"]
    return f"{captions['over_context_length']} ({share:.1%}), which are cut; --context-length {longest} reads all"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]} ..."


def _worded(value: Any) -> Any:
    return _range(value) if isinstance(value, Mapping) else value


def _range(values: Mapping[str, float]) -> str:
    if not values:
        return "-"
    middle = f", median {values['median']:g}" if "median" in values else ""
    return f"{values['min']:g} to {values['max']:g}{middle}"
