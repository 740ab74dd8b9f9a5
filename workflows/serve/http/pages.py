"""The pages that the service shows: prompts to try, and the reference; neither needs another site."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any, Final

from diffusion_core.strength import DEFAULT_STRENGTH
from workflows.options.guidance import DEFAULT_GUIDANCE, FURTHER_NAMES, KINDS, SETTINGS, GuidanceKind
from workflows.options.samplers import SAMPLERS
from workflows.runtime.templates import template

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


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


def prompt_page() -> str:
    """The page to try prompts; its choices are those of the tables of guidance and samplers."""
    return template("workflows.serve.http", "page/page.html").render(
        kinds={kind.name: _choice(kind) for kind in KINDS.values()},
        settings=[SETTINGS[name] for name in FURTHER_NAMES],
        samplers=list(SAMPLERS.values()),
        default_guidance=DEFAULT_GUIDANCE.name,
        default_strength=DEFAULT_STRENGTH,
        eta_readers=[sampler.name for sampler in SAMPLERS.values() if sampler.takes_eta],
    )


def reference_page(document: dict[str, Any]) -> str:
    """The OpenAPI document as a page to read."""
    schemas = document["components"]["schemas"]
    routes = [
        {
            "method": method.upper(),
            "path": path,
            "fields": list(_fields(route, schemas)),
            "answers": list(_answers(route, schemas)),
            "responses": route["responses"],
        }
        for path, kinds in document["paths"].items()
        for method, route in kinds.items()
    ]
    page = template("workflows.serve.http", "reference.html")
    return page.render(title=document["info"]["title"], routes=routes)


def _choice(kind: GuidanceKind) -> dict[str, Any]:
    names = ("title", "needs", "scale", "takes_label", "takes_negative", "reads")
    return {name: getattr(kind, name) for name in names}


def _fields(route: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning of each field of a route's body."""
    for body in route.get("requestBody", {}).get("content", {}).values():
        schema = body["schema"]
        for part in [schema, *schema.get("allOf", [])]:
            yield from _rows(part, schemas)


def _answers(route: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The content type of each kind of successful answer, and its fields; those of objects inside have a dot."""
    for kind, body in route["responses"].get("200", {}).get("content", {}).items():
        rows = list(_rows(body.get("schema", {}), schemas))
        if rows:
            yield kind, rows


def _rows(schema: dict[str, Any], schemas: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    known = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for name, field in known.get("properties", {}).items():
        yield prefix + name, _type(field), field.get("description", "")
        inner = [field, *field.get("anyOf", []), *field.get("allOf", [])]
        for part in [*inner, *(one["items"] for one in inner if "items" in one)]:
            if "$ref" in part:
                yield from _rows(part, schemas, f"{prefix}{name}.")


def _type(field: dict[str, Any]) -> str:
    """The type of a field with its bounds and its default, in words."""
    kind = _bare_type(field)
    default = field.get("default")
    return kind if default is None or default in ([], {}) or isinstance(default, dict) else f"{kind}, default {default}"


def _bare_type(field: dict[str, Any]) -> str:
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    options = [_bare_type(option) for option in field.get("anyOf", [])]
    if joined := " or ".join(option for option in options if option != "null"):
        return joined
    if "$ref" in field:
        return "object"
    low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    kind = str(field.get("type", ""))
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    return f"{kind}, at least {low}" if low is not None else kind
