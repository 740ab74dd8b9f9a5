"""The commands of other programs' checkpoints: `import` and `export`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from workflows.cli.command import open_command
from workflows.cli.options import SetOption, StoreOption

verbs = typer.Typer()


@verbs.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A diffusers pipeline's folder, with safetensors weights.")],
    name: Annotated[str, typer.Option("--name", help="Of the registered model.")],
    config: StoreOption = "digits",
    overrides: SetOption = None,
) -> None:
    """Registers a diffusers checkpoint as a model like any other.

    Example: raverse import stable-diffusion-v1-5 --name sd
    """
    with open_command(config, overrides) as command:
        from workflows.diffusers_io.importing import import_pipeline
        from workflows.release.imported import register_package

        settings = command.config
        settings.root_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.root_folder, prefix=".import-") as scratch:
            package = Path(scratch) / "package"
            command.progress.log(f"reading {path}")
            imported = import_pipeline(path, package)
            for difference in imported.differences:
                command.progress.log(f"note: {difference}")
            command.progress.log("registering it")
            version, alias = register_package(settings, name, package)
        command.console.print(
            f"{version.name}@{alias} is version {version.version}, a {imported.card.source} "
            f'({imported.card.hash[:12]})\nraverse sample "a photograph" --model {version.name}@{alias}',
            soft_wrap=True,
            highlight=False,
        )


@verbs.command("export")
def export(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS, NAME/VERSION or the folder of a package.")],
    path: Annotated[Path, typer.Argument(help="The folder or file to write.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers: a pipeline's folder; lora: a LoRA version's matrices; kohya: those for ComfyUI.",
        ),
    ] = "diffusers",
    config: StoreOption = "digits",
    overrides: SetOption = None,
) -> None:
    """Writes an imported or fine-tuned model as diffusers reads it.

    Example: raverse export sd@champion exported --format diffusers
    """
    with open_command(config, overrides) as command:
        from workflows.diffusers_io.exporting import FORMATS
        from workflows.package.source import find_model

        if format_ not in FORMATS:
            raise typer.BadParameter(f"{format_!r}: wanted one of {', '.join(FORMATS)}", param_hint="--format")
        source = find_model(command.config, model)
        FORMATS[format_](source.folder, path.absolute())
        command.console.print(f"{path}: {source.label}", soft_wrap=True, highlight=False)
