"""The reference page of the HTTP interface, which needs no script and no other site."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html import escape
from typing import Any, Final

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1f;background:#fff}
@media(prefers-color-scheme:dark){body{color:#e8e6ef;background:#141318}td,th{border-color:#3b3946}}
h2{font-size:1.1rem;margin-top:2rem}code{font-family:ui-monospace,monospace}
table{border-collapse:collapse;width:100%;display:block;overflow-x:auto}
td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left;vertical-align:top}
"""


def content_policy(page: str) -> str:
    """The content security policy that allows a page its own script and style, by their hashes, and nothing else."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    script, style = (" ".join(hashes[kind]) or "'none'" for kind in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def reference_page(document: dict[str, Any]) -> str:
    """Renders the OpenAPI document as an HTML page."""
    title = escape(document["info"]["title"])
    schemas = document["components"]["schemas"]
    routes = "".join(
        _route(method, path, route, schemas)
        for path, kinds in document["paths"].items()
        for method, route in kinds.items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}: reference</title><style>{_STYLE}</style><h1>{title}: reference</h1>"
        f"<p>As a document for machines: <a href='openapi.json'>openapi.json</a>.</p>{routes}</html>"
    )


def _route(method: str, path: str, route: dict[str, Any], schemas: dict[str, Any]) -> str:
    answers = "".join(
        f"<tr><td>{escape(status)}<td>{escape(answer['description'])}" for status, answer in route["responses"].items()
    )
    fields = "".join(_fields(route, schemas))
    table = f"<table><tr><th>field<th>type<th>meaning{fields}</table>" if fields else ""
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2>{table}<table><tr><th>status<th>when{answers}</table>"


def _fields(route: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    for body in route.get("requestBody", {}).get("content", {}).values():
        schema = body["schema"]
        for part in [schema, *schema.get("allOf", [])]:
            known = schemas[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
            for name, field in known.get("properties", {}).items():
                yield (
                    f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}"
                    f"<td>{escape(field.get('description', ''))}"
                )


def _type(field: dict[str, Any]) -> str:
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    options = [_type(option) for option in field.get("anyOf", [])]
    return " or ".join(option for option in options if option != "null") or str(field.get("type", ""))
