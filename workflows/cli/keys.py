"""Commands of the service beside `raverse serve`."""

from __future__ import annotations

from typing import Annotated

import typer

NameArgument = Annotated[str, typer.Argument(help="Whose key it is; told in the service's log.")]
RateOption = Annotated[int | None, typer.Option("--per-minute", min=1, help="Requests a minute that it may send.")]


verbs = typer.Typer()


@verbs.command("api-key")
def api_key(name: NameArgument, per_minute: RateOption = None) -> None:
    """Makes an API key of the service: the key on standard error, once, and the line to store on standard output.

    Example: raverse api-key alice --per-minute 60 >> keys.txt
    """
    from workflows.errors import InvalidConfig
    from workflows.serve.http.keys import new_key

    try:
        key, line = new_key(name, per_minute)
    except InvalidConfig as error:
        typer.echo(f"raverse: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"key of {name}, shown this once: {key}", err=True)
    typer.echo(line)
