"""The job: a table of stages, each a function from artifacts to one artifact.

A stage is skipped when its artifact is there already: its key is a hash of the stage's name, its code
version, its sections of the configuration and the keys of its inputs. So a job that was stopped goes on
where it was, and a change of `serve` re-trains nothing. When nothing is left to do, neither torch nor Ray
is imported.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from workflows.config.schema import RunConfig
from workflows.job.stopped import explain_start, note_settings
from workflows.runtime.artifact import Artifact, artifact_folder, artifact_key, find_artifact, require_artifact
from workflows.runtime.progress import Progress

StageFunction = Callable[[RunConfig, dict[str, Artifact], Path, Progress], dict[str, Any]]
DATA: Final = "data"
"""The stage that the outlook is made from."""
Outlook = Callable[[RunConfig, Artifact, Sequence[str]], list[str]]
Session = Callable[[RunConfig], AbstractContextManager[None]]


@final
@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        name: of the stage and its command.
        help: what it does, in one sentence.
        load: imports the stage's function, only when it is to run.
        sections: the parts of the configuration that determine the result, as JSON-serializable values.
        inputs: stages whose artifacts it reads.
        checks: called before any work of a job in which the stage is to run; they raise what would stop it.
        version: version of the stage's code; raise it when the same configuration gives another result.
    """

    name: str
    help: str
    load: Callable[[], StageFunction]
    sections: Callable[[RunConfig], dict[str, Any]]
    inputs: tuple[str, ...] = ()
    checks: tuple[Callable[[RunConfig], None], ...] = ()
    version: int = 1

    @property
    def summary(self) -> str:
        """What it does and which artifacts it reads, for help texts."""
        return f"{self.help} Reads: {', '.join(self.inputs) or 'nothing'}."


@final
@dataclass(frozen=True)
class Planned:
    """A stage of one job: what its key holds, where its artifact lives, and the artifact when it is finished."""

    stage: Stage
    settings: dict[str, Any]
    key: str
    folder: Path
    artifact: Artifact | None


@final
@dataclass(frozen=True)
class Outcome:
    """A finished stage: its artifact, and whether it had been there already."""

    artifact: Artifact
    skipped: bool


@final
@dataclass(frozen=True)
class JobResult:
    """All outcomes in order, and the seconds that the whole job and the start of Ray took."""

    outcomes: tuple[Outcome, ...]
    seconds: float
    session_seconds: float


def plan_job(config: RunConfig, stages: Sequence[Stage]) -> list[Planned]:
    """Says for each stage where its artifact lives and whether it is finished; reads files only."""
    plan: dict[str, Planned] = {}
    for stage in stages:
        inputs = {name: plan[name].key for name in stage.inputs}
        section = {"version": stage.version, "config": stage.sections(config)}
        key = artifact_key(stage.name, section, inputs)
        folder = artifact_folder(config.root_folder, stage.name, key)
        plan[stage.name] = Planned(stage, section | {"inputs": inputs}, key, folder, find_artifact(folder))
    return list(plan.values())


def run_job(
    config: RunConfig, progress: Progress, plan: Sequence[Planned], session: Session, outlook: Outlook | None = None
) -> JobResult:
    """Runs what is not finished, in one Ray session.

    Args:
        config: the job.
        progress: told about each stage.
        plan: the stages.
        session: a Ray for the stages.
        outlook: says what is to come, once there are data: from their artifact, and the names of unfinished stages.

    Raises:
        RaverseError: what a stage says.
    """
    started = time.monotonic()
    check_job(config, [planned for planned in plan if planned.artifact is None])
    done: dict[str, Outcome] = {}
    session_seconds = 0.0
    with contextlib.ExitStack() as stack:
        for planned in plan:
            name = planned.stage.name
            if planned.artifact is not None:
                progress.log(f"{name}: already done, skipped")
                done[name] = Outcome(planned.artifact, skipped=True)
                continue
            if session_seconds == 0.0:
                session_seconds = _enter(stack, session(config), progress)
            inputs = {source: done[source].artifact for source in planned.stage.inputs}
            if DATA in inputs and outlook is not None:
                _foretell(config, progress, plan, done, outlook)
                outlook = None
            done[name] = Outcome(make_artifact(config, planned, inputs, progress), skipped=False)
    return JobResult(tuple(done.values()), time.monotonic() - started, session_seconds)


def _foretell(
    config: RunConfig, progress: Progress, plan: Sequence[Planned], done: dict[str, Outcome], outlook: Outlook
) -> None:
    unfinished = [planned.stage.name for planned in plan if planned.artifact is None]
    for line in outlook(config, done[DATA].artifact, unfinished):
        progress.log(line)


def run_one(config: RunConfig, progress: Progress, plan: Sequence[Planned], name: str, session: Session) -> Outcome:
    """Runs one stage on the finished artifacts that it reads.

    Raises:
        MissingArtifact: one of them has not been made with this configuration.
    """
    rows = {planned.stage.name: planned for planned in plan}
    planned = rows[name]
    if planned.artifact is not None:
        return Outcome(planned.artifact, skipped=True)
    inputs = {source: require_artifact(rows[source].folder, source) for source in planned.stage.inputs}
    check_job(config, [planned])
    with session(config):
        return Outcome(make_artifact(config, planned, inputs, progress), skipped=False)


def check_job(config: RunConfig, unfinished: Sequence[Planned]) -> None:
    """Raises what would stop these stages later, before any work begins; each check once."""
    for check in dict.fromkeys(check for planned in unfinished for check in planned.stage.checks):
        check(config)


def make_artifact(config: RunConfig, planned: Planned, inputs: dict[str, Artifact], progress: Progress) -> Artifact:
    """Runs a stage's function in its folder and commits the artifact."""
    stage = planned.stage
    started = time.monotonic()
    fresh_start = explain_start(planned.folder, planned.settings)
    planned.folder.mkdir(parents=True, exist_ok=True)
    note_settings(planned.folder, planned.settings)
    with progress.stage(stage.name), _keep_signal_handlers():
        progress.log("started")
        if fresh_start is not None:
            progress.log(fresh_start)
        metrics = stage.load()(config, inputs, planned.folder, progress)
        seconds = time.monotonic() - started
        artifact = Artifact(
            stage=stage.name,
            key=planned.key,
            folder=planned.folder,
            inputs={name: artifact.key for name, artifact in inputs.items()},
            metrics=metrics,
            seconds=seconds,
        )
        artifact.commit()
        progress.log(f"done in {seconds:.1f} s")
    return artifact


def _enter(stack: contextlib.ExitStack, session: AbstractContextManager[None], progress: Progress) -> float:
    started = time.monotonic()
    progress.log("starting Ray")
    stack.enter_context(session)
    return time.monotonic() - started


@contextlib.contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Ray Train replaces the handler of Ctrl-C and leaves it so; an exit from it is an interrupt to us."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
