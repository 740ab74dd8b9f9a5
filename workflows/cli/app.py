"""`raverse`: the command line of the job, of its stages and of the service.

An error that raverse knows is one sentence on standard error and exit code 1; an unknown one is one line
that says where its traceback was written. Ctrl-C ends with 130 and leaves the finished stages.
"""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, final

import typer
from rich.console import Console

from workflows.cli import cluster as deploy_commands
from workflows.cli import exchange as interop_commands
from workflows.cli import models as model_commands
from workflows.cli.cache import cache_app
from workflows.cli.data import data_app
from workflows.cli.keys import api_key
from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.job.pipeline import plan_job, run_job, run_one
from workflows.job.report import next_lines, stage_table, write_report
from workflows.job.stages import STAGES
from workflows.runtime.failure import explain
from workflows.runtime.preflight import check_port, exclusive_storage
from workflows.runtime.progress import Progress
from workflows.runtime.session import ray_session

_INTERRUPTED: Final = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train text-conditioned diffusion models on captioned images, and serve them.",
)

ConfigOption = Annotated[str, typer.Option("--config", help="digits, shapes, or the path of a YAML file.")]
GroupConfigOption = Annotated[str | None, typer.Option("--config", help="digits, shapes, or the path of a YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides one key, such as serve.port=8001.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="NAME@ALIAS or NAME/VERSION; default: what the configuration registers.")
]


@final
@dataclass(frozen=True)
class _Command:
    """What a command works with."""

    config: RunConfig
    console: Console
    progress: Progress


@app.command()
def run(config: ConfigOption, overrides: SetOption = None) -> None:
    """Runs the whole job: every stage that is not finished yet, then the report.

    Example: raverse run --config digits --set storage.root=runs
    """
    with _command(config, overrides) as command, exclusive_storage(command.config):
        plan = plan_job(command.config, STAGES)
        result = run_job(command.config, command.progress, plan, ray_session)
        write_report(command.config, result)
        command.console.print(stage_table(result))
        lines = next_lines(command.config, result, config, overrides or [])
        command.console.print(lines, soft_wrap=True, highlight=False, markup=False)


@app.command()
def serve(config: ConfigOption = "digits", model: ModelOption = None, overrides: SetOption = None) -> None:
    """Serves a registered model over HTTP until Ctrl-C.

    Example: raverse serve --config digits --model raverse-digits@champion
    """
    with _command(config, overrides) as command:
        settings = command.config
        check_port(settings)
        command.progress.log("starting Ray")
        with ray_session(settings):
            from workflows.serve.app import serve as serve_model

            reference = model or f"{settings.register_.model_name}@{settings.register_.alias}"
            serve_model(settings, reference, command.progress)


def _run_stage(name: str, config: str, overrides: list[str] | None) -> None:
    with _command(config, overrides) as command, exclusive_storage(command.config):
        plan = plan_job(command.config, STAGES)
        outcome = run_one(command.config, command.progress, plan, name, ray_session)
        state = "already done, skipped" if outcome.skipped else "done"
        command.console.print(f"{name}: {state}: {outcome.artifact.folder}", soft_wrap=True, highlight=False)


def _add_stage(name: str, help_text: str) -> None:
    def stage(config: ConfigOption, overrides: SetOption = None) -> None:
        _run_stage(name, config, overrides)

    def group(context: typer.Context, config: GroupConfigOption = None, overrides: SetOption = None) -> None:
        if context.invoked_subcommand is None:
            if config is None:
                raise typer.BadParameter("missing: give digits, shapes, or a YAML file", param_hint="--config")
            stage(config, overrides)

    if name in _GROUPS:
        _GROUPS[name].callback(invoke_without_command=True, help=help_text)(group)
        app.add_typer(_GROUPS[name], name=name)
    else:
        app.command(name, help=help_text)(stage)


_GROUPS: Final = {"data": data_app}
"""Stages that have commands of their own below them."""
app.add_typer(cache_app, name="cache")


app.command("api-key")(api_key)


@contextmanager
def _command(name_or_file: str, overrides: list[str] | None) -> Iterator[_Command]:
    """Configuration and output of a command; tells its errors and sets the exit code."""
    folder: Path | None = None
    try:
        _interrupt_on_signals()
        config = load_config(name_or_file, overrides)
        folder = config.run_folder
        with ExitStack() as stack:
            # A copy of the descriptor: the session sends the original to Ray's log.
            output = stack.enter_context(os.fdopen(os.dup(1), "w"))
            console = Console(file=output, width=None if output.isatty() else 120)
            yield _Command(config, console, Progress(console))
    except KeyboardInterrupt:
        _tell("stopped; finished stages are kept, and the same command goes on from there")
        raise typer.Exit(_INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - the one place where any error becomes what the user sees
        _tell(explain(error) or _unexpected(error, folder))
        raise typer.Exit(1) from None


def _interrupt_on_signals() -> None:
    """Ends an orderly way on Ctrl-C, `kill` and a closed terminal alike."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _unexpected(error: Exception, folder: Path | None) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"unexpected {type(error).__name__} ({lines[0][:200]}): the traceback is in {_write_traceback(folder)}"


def _tell(sentence: str) -> None:
    typer.echo(f"raverse: {sentence}", err=True)


def _write_traceback(folder: Path | None) -> Path:
    """Appends the traceback to `error.log` in the run folder, or to a temporary file where that fails."""
    text = traceback.format_exc()
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.log").write_text(text)
            return folder / "error.log"
    except OSError:
        pass  # a full or read-only disk must not hide the error itself
    with tempfile.NamedTemporaryFile("w", prefix="raverse-error-", suffix=".log", delete=False) as file:
        file.write(text)
    return Path(file.name)


for _stage in STAGES:
    if _stage.name != "evaluate":
        _add_stage(_stage.name, f"{_stage.help} Reads: {', '.join(_stage.inputs) or 'nothing'}.")
interop_commands.add_to(app, _command)
model_commands.add_to(app, _command, partial(_run_stage, "evaluate"))
deploy_commands.add_to(app, _command)


def main() -> None:
    """Entry point of the `raverse` command."""
    app()


if __name__ == "__main__":
    main()
