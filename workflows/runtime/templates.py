"""HTML pages from Jinja2 templates, which lie beside the modules that fill them."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def template(package: str, name: str) -> Template:
    """A template of a package: every value is escaped, a missing one is an error, and lines with tags leave no trace.

    Args:
        package: its dotted name, such as `__package__`.
        name: of the file in the package's folder.
    """
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
