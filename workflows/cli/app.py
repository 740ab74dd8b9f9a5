"""`raverse`: the command line of the job, of its stages and of the service.

Each module of this folder holds the verbs of one subject; here they become one program.
"""

from __future__ import annotations

import typer

from workflows.cli import cache, cluster, data, exchange, job, keys, models

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train text-conditioned diffusion models on captioned images, and serve them.",
)
for _subject in (job, data, cache, keys, exchange, models, cluster):
    app.add_typer(_subject.verbs)


def main() -> None:
    """Entry point of the `raverse` command."""
    app()
