"""A verb of the command line: lists what a model may be asked for."""

from __future__ import annotations

from pathlib import Path

from tests.workflows.growth.edits import instead, new_file

NAME = "verb"
MOST_FILES = 2
EDITS = (
    new_file(
        "workflows/cli/choices.py",
        '''"""The verb that lists the kinds of guidance and the samplers."""

from __future__ import annotations

import typer

from workflows.options.guidance import KINDS
from workflows.options.samplers import SAMPLERS

verbs = typer.Typer()


@verbs.command()
def choices() -> None:
    """Lists the kinds of guidance and the samplers.

    Example: raverse choices
    """
    for kind in KINDS.values():
        typer.echo(f"guidance {kind.name}: {kind.description}")
    for sampler in SAMPLERS.values():
        typer.echo(f"sampler {sampler.name}: {sampler.title}")
''',
    ),
    instead(
        "workflows/cli/app.py",
        "import cache, cluster,",
        "import cache, choices, cluster,",
    ),
    instead("workflows/cli/app.py", "(job, data,", "(job, choices, data,"),
)


def check(_package: Path, _folder: Path) -> None:
    """The program lists the verb, explains it, and runs it."""
    from tests.workflows.growth.interfaces import help_of, raverse

    assert " choices Lists the kinds of guidance and the samplers." in help_of()
    assert "Example: raverse choices" in help_of("choices")
    lines = raverse("choices").splitlines()
    assert "sampler ddim: DDIM" in lines
    assert any(line.startswith("guidance classifier_free: ") for line in lines)
