"""The report of `raverse data check` as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

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
    captions = report["captions"]
    facts = {
        "format": report["format"],
        "records looked at": f"{report['records']}{'' if report['complete'] else ' (a sample)'}",
        "usable": report["usable"],
        "duplicate images": report["duplicate_images"],
        "captions": f"{captions['total']}, of which {captions['distinct']} differ",
        f"captions over {captions['context_length']} tokens": captions["over_context_length"],
    }
    if report["format"] != "vectors":
        facts |= {name.replace("_", " "): _range(report[name]) for name in ("width", "height", "aspect_ratio")}
        facts["smaller than wanted"] = report["smaller_than_wanted"]
    sections = [
        _table("Overview", facts),
        _table("Columns of numbers", {name: _range(span) for name, span in report.get("columns", {}).items()}),
        _table("Cannot be used", report["unusable"]),
        _examples(report["unusable_examples"]),
        _table("Used with a change", report["changed"]),
        _table("Modes", report["modes"]),
        _table("File formats", report["formats"]),
        _table("Labels", report["labels"]),
        _table("Most common captions", captions["most_common"]),
    ]
    broken = f"{report['records'] - report['usable']} of {report['records']} records cannot be used"
    verdict = (
        f"These data can be used; {broken}."
        if usable
        else f'<span class="bad">These data cannot be used as they are: {broken}.</span>'
    )
    figures = "".join(
        f'<figure><img src="{escape(item["image"])}" alt=""><figcaption>{escape(item["caption"])}</figcaption></figure>'
        for item in thumbnails
    )
    seen = f'<h2>As the model would see them</h2><div class="grid">{figures}</div>' if figures else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(report["path"])}</title>'
        f"<style>{_STYLE}</style><h1>{escape(report['path'])}</h1><p>{verdict}</p>{''.join(sections)}"
        f"{seen}"
        f"<h2>Next</h2><pre>{escape(report['next'])}</pre></html>\n"
    )


def _table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td class=n>{escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<h2>{escape(title)}</h2><table>{rows}</table>"


def _examples(broken: Sequence[Mapping[str, str]]) -> str:
    if not broken:
        return ""
    rows = "".join(f"<tr><td>{escape(row['name'])}</td><td>{escape(row['reason'])}</td></tr>" for row in broken)
    return f"<table><tr><th>for example</th><th>reason</th></tr>{rows}</table>"


def _range(values: Mapping[str, float]) -> str:
    if not values:
        return "-"
    middle = f", median {values['median']:g}" if "median" in values else ""
    return f"{values['min']:g} to {values['max']:g}{middle}"
