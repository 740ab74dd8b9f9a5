"""Options that several verbs share, and those that are made from the tables of guidance and samplers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any, Final

import typer

from workflows.errors import InvalidRequest
from workflows.options.guidance import DEFAULT_GUIDANCE, KINDS, SETTINGS, Guidance, Setting
from workflows.options.samplers import SAMPLERS

ConfigOption = Annotated[
    str, typer.Option("--config", help="digits, shapes, pictures, vectors, or the path of a YAML file.")
]
GivenOption = Annotated[
    str | None,
    typer.Option(
        "--config", help="A built-in name or the path of a YAML file; default: what the version was made with."
    ),
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--config", help="Whose store and model: digits, shapes, pictures, vectors, or the path of a YAML file."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides one key, such as storage.root=runs.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="NAME@ALIAS, NAME/VERSION or the folder of a package; default: the registered one."),
]
RegisteredOption = Annotated[
    str | None, typer.Option("--model", help="NAME@ALIAS or NAME/VERSION; default: what the configuration registers.")
]
_TYPES: Final[dict[str, Any]] = {"number": float, "flag": bool, "interval": tuple[float, float]}
SamplerOption = Annotated[str, typer.Option(help=f"One of {', '.join(SAMPLERS)}.")]
_GUIDANCE: Final = typer.Option("--guidance", help=f"One of {', '.join(KINDS)}; or several joined by +.")


def with_guidance(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb an option for the kind of guidance and one for each setting.

    Args:
        verb: takes the `Guidance` as its argument `guidance`.

    Returns:
        The verb with its own options, then those of the table.
    """

    @wraps(verb)
    def command(*, guidance: str, **given: Any) -> None:
        settings = {name: given.pop(name) for name in SETTINGS}
        verb(guidance=lambda: Guidance.of(guidance, **settings), **given)

    own = inspect.signature(verb, eval_str=True).parameters.values()
    made = [_parameter("guidance", Annotated[str, _GUIDANCE], DEFAULT_GUIDANCE.name)]
    made += [_parameter(setting.name, _option(setting), None) for setting in SETTINGS.values()]
    parameters = [parameter for parameter in own if parameter.name != "guidance"] + made
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@contextmanager
def naming_options() -> Iterator[None]:
    """A message about a setting of guidance names its option instead."""
    try:
        yield
    except InvalidRequest as error:
        setting = SETTINGS.get(error.param or "")
        if setting is None:
            raise
        raise InvalidRequest(f"{setting.command_option}: {error.reason}", setting.name) from error


def _option(setting: Setting) -> Any:
    name = setting.command_option
    # A model's own setting may be on, so a flag can also be switched off.
    names = f"{name}/--no-{name.removeprefix('--')}" if setting.form == "flag" else name
    return Annotated[
        _TYPES[setting.form] | None, typer.Option(names, help=f"{setting.description} Default: the model's.")
    ]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
