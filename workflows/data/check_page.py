"""The report of `raverse data check` as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from workflows.data.sources import SOURCES

_WIDEST: Final = 120
_SIZES: Final = ("width", "height", "aspect_ratio", "smaller_than_wanted")
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem } td, th { padding: 0.15rem 1rem 0.15rem 0; text-align: left;
vertical-align: top } td.n { text-align: right } tr:nth-child(even) { background: #f7f7f7 }
.grid { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; width: 110px; font-size: 12px; overflow-wrap: anywhere }
figcaption { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden }
img { image-rendering: pixelated }
pre { background: #f4f4f4; padding: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere } .bad { color: #b3261e }
"""


def page(report: Mapping[str, Any], thumbnails: Sequence[Mapping[str, str]], *, usable: bool) -> str:
    """The whole page.

    Args:
        report: of `check_data`.
        thumbnails: `caption` and `image` (a data URL) each.
        usable: whether the job would accept these data.
    """
    parts = {title: _table(title, values) for title, values in tables(report).items()}
    parts["Cannot be used"] += _examples(report["unusable_examples"])
    said = escape(verdict(report, usable=usable))
    figures = "".join(
        f'<figure><img src="{escape(item["image"])}" alt=""><figcaption>{escape(item["caption"])}</figcaption></figure>'
        for item in thumbnails
    )
    seen = f'<h2>As the model would see them</h2><div class="grid">{figures}</div>' if figures else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(report["path"])}</title>'
        f"<style>{_STYLE}</style><h1>{escape(report['path'])}</h1><p class={'good' if usable else 'bad'}>{said}</p>"
        f"{''.join(parts.values())}{seen}"
        f"<h2>Next</h2><pre>{escape(report['next'])}</pre></html>\n"
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
        f"duplicate {intake.counted}": report["duplicate_images"],
        "captions": f"{captions['total']}, of which {captions['distinct']} differ",
        f"captions over {captions['context_length']} tokens": captions["over_context_length"],
    }
    overview |= {name.replace("_", " "): _worded(facts[name]) for name in _SIZES if name in facts}
    return {
        "Overview": overview,
        "Columns of numbers": {name: _range(span) for name, span in facts.get("columns", {}).items()},
        "Cannot be used": report["unusable"],
        "Used with a change": report["changed"],
        "Modes": facts.get("modes", {}),
        "File formats": facts.get("formats", {}),
        "Labels": report["labels"],
        "Most common captions": captions["most_common"],
    }


def _table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><td>{escape(_short(str(name)))}</td><td class=n>{escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<h2>{escape(title)}</h2><table>{rows}</table>"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]} ..."


def _examples(broken: Sequence[Mapping[str, str]]) -> str:
    if not broken:
        return ""
    rows = "".join(f"<tr><td>{escape(row['name'])}</td><td>{escape(row['reason'])}</td></tr>" for row in broken)
    return f"<table><tr><th>for example</th><th>reason</th></tr>{rows}</table>"


def _worded(value: Any) -> Any:
    return _range(value) if isinstance(value, Mapping) else value


def _range(values: Mapping[str, float]) -> str:
    if not values:
        return "-"
    middle = f", median {values['median']:g}" if "median" in values else ""
    return f"{values['min']:g} to {values['max']:g}{middle}"
