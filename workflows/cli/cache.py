"""`raverse cache`: what the embedding caches of a storage folder hold, whether they are whole, and what may go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

caches = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Lists, verifies and prunes the embedding caches."
)
verbs = typer.Typer()
verbs.add_typer(caches, name="cache")

RootOption = Annotated[Path, typer.Option("--root", help="The storage folder, as storage.root.")]


@caches.command("list")
def list_caches(root: RootOption = Path("runs")) -> None:
    """Lists the caches of finished jobs and the encoded captions that all jobs share."""
    from workflows.embed.inventory import inventory

    table = Table("cache", "rows", "MiB", "towers", "used by")
    table.columns[0].overflow = "fold"
    items = inventory(root)
    for item in items:
        used = "-" if item.used_by is None else str(len(item.used_by))
        size = "?" if item.size is None else f"{item.size / 2**20:.1f}"
        table.add_row(item.name, str(item.rows), size, item.towers, used)
    Console(soft_wrap=True).print(table)
    for item in items:
        if item.store is not None:
            typer.echo(f"{item.name}: its shards are in {item.store}")


@caches.command("verify")
def verify(root: RootOption = Path("runs")) -> None:
    """Compares every shard with its hash, in object storage too.

    Exit status: 0 all are whole; 1 some are missing, changed or out of reach. After `prune` the next job makes them.
    """
    from workflows.embed.inventory import damaged_files

    found = damaged_files(root)
    for path, reason in found:
        typer.echo(f"{path}: {reason}")
    typer.echo(f"{len(found)} damaged" if found else "every shard is whole")
    raise typer.Exit(1 if found else 0)


@caches.command("prune")
def prune(
    root: RootOption = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Removes half-written files, damaged parts, and captions of towers that no finished job uses.

    A cache with damaged shards counts as unfinished from then on. Object storage is left as it is.
    """
    from diffusion_core.errors import RaverseError
    from workflows.embed.inventory import prunable, remove
    from workflows.runtime.preflight import exclusive_folder

    try:
        with exclusive_folder(root.absolute()):
            found = prunable(root)
            for path, reason in found:
                typer.echo(f"{'would remove' if dry_run else 'removed'} {path}: {reason}")
                if not dry_run:
                    remove(path)
    except RaverseError as error:
        typer.echo(f"raverse: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{len(found)} {'to remove' if dry_run else 'removed'}")
