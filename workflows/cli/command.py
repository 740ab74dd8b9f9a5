"""A verb's surroundings: its configuration, its output, and its errors as one sentence.

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
from pathlib import Path
from types import FrameType
from typing import Final, final

import typer
from rich.console import Console

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.job.pipeline import plan_job, run_one
from workflows.job.stages import STAGES
from workflows.runtime.failure import explain
from workflows.runtime.preflight import exclusive_storage
from workflows.runtime.progress import Progress
from workflows.runtime.session import ray_session

_INTERRUPTED: Final = 130


@final
@dataclass(frozen=True)
class Command:
    """What a command works with."""

    config: RunConfig
    console: Console
    progress: Progress


@contextmanager
def open_command(name_or_file: str, overrides: list[str] | None) -> Iterator[Command]:
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
            yield Command(config, console, Progress(console))
    except KeyboardInterrupt:
        _tell("stopped; finished stages are kept, and the same command goes on from there")
        raise typer.Exit(_INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - the one place where any error becomes what the user sees
        _tell(explain(error) or _unexpected(error, folder))
        raise typer.Exit(1) from None


def _interrupt_on_signals() -> None:
    """Makes `kill` and a closed terminal raise what Ctrl-C does, so that the command ends in order."""

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


def run_stage(name: str, config: str, overrides: list[str] | None) -> None:
    """Runs one stage of the job, unless it is finished."""
    with open_command(config, overrides) as command, exclusive_storage(command.config):
        plan = plan_job(command.config, STAGES)
        outcome = run_one(command.config, command.progress, plan, name, ray_session)
        state = "already done, skipped" if outcome.skipped else "done"
        command.console.print(f"{name}: {state}: {outcome.artifact.folder}", soft_wrap=True, highlight=False)
