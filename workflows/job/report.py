"""How a job ends: its table of stages, its run folder, and the lines to copy next."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from workflows import __version__
from workflows.config.schema import RunConfig
from workflows.job.pipeline import JobResult, Outcome
from workflows.runtime.git import git_state
from workflows.storage.atomic import write_whole
from workflows.tracking.store import tracking_uri

_PACKAGES: Final = ("ray", "torch", "open_clip_torch", "mlflow", "pyarrow", "numpy")
_FIGURES_SHOWN: Final = 4
_LONGEST_TEXT_SHOWN: Final = 24
_DECODE_PICTURE: Final = "grep -oE '[A-Za-z0-9+/=]{90,}' | base64 -d > picture.png"

# What the run folder shows of each stage's artifact.
_COPIED: Final = (
    ("evaluate", "samples.png", "samples.png"),
    ("evaluate", "curves.png", "curves.png"),
    ("evaluate", "neighbours.png", "neighbours.png"),
    ("evaluate", "samples.csv", "samples.csv"),
    ("clip", "training/losses.png", "clip-losses.png"),
    ("clip", "training/losses.csv", "clip-losses.csv"),
    ("denoiser", "losses.png", "denoiser-losses.png"),
    ("denoiser", "losses.csv", "denoiser-losses.csv"),
    ("classifier", "losses.png", "classifier-losses.png"),
    ("classifier", "losses.csv", "classifier-losses.csv"),
)


def write_report(config: RunConfig, result: JobResult) -> Path:
    """Writes `report.json` and copies the pictures into the run folder.

    A job in which nothing was left to do keeps the report of the run that did it.
    """
    target = config.run_folder / "report.json"
    if all(outcome.skipped for outcome in result.outcomes) and _reports_same(target, result):
        return target
    config.run_folder.mkdir(parents=True, exist_ok=True)
    for stage, source, name in _COPIED:
        for outcome in result.outcomes:
            if outcome.artifact.stage == stage and (outcome.artifact.folder / source).is_file():
                shutil.copyfile(outcome.artifact.folder / source, config.run_folder / name)
    write_whole(target, json.dumps(report(config, result), indent=2) + "\n")
    return target


def report(config: RunConfig, result: JobResult) -> dict[str, Any]:
    """Everything about a job that a reader may ask for later, as JSON-serializable values."""
    return {
        "name": config.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": _seconds(result),
        "metrics": {outcome.artifact.stage: outcome.artifact.metrics for outcome in result.outcomes},
        "artifacts": _folders(result),
        "config": config.model_dump(mode="json", by_alias=True),
        "versions": _versions(),
        "git": git_state(),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
    }


def stage_table(result: JobResult) -> Table:
    """The stages of a job with their seconds and their first few figures."""
    table = Table("stage", "seconds", "key figures", title=f"{result.seconds:.1f} s in all")
    table.columns[1].justify = "right"
    for outcome in result.outcomes:
        seconds = "skipped" if outcome.skipped else f"{outcome.artifact.seconds:.1f}"
        table.add_row(outcome.artifact.stage, seconds, _figures(outcome))
    return table


def next_lines(config: RunConfig, result: JobResult, config_argument: str, overrides: Sequence[str]) -> str:
    """What to copy next: the tracking page, the service, one picture."""
    options = "".join(f" --set {shlex.quote(item)}" for item in overrides)
    address = f"http://{config.serve.host}:{config.serve.port}/v1/images/generations"
    body = shlex.quote(json.dumps({"prompt": _example_prompt(result)}))
    shown = [config.run_folder / name for name in ("report.json", "samples.png")]
    return "\n".join(
        [
            "see " + " and ".join(_short(file) for file in shown if file.is_file()),
            "# every run, figure and model version, on a page",
            f"{_program('mlflow')} ui --backend-store-uri {tracking_uri(config)} --port 5000",
            "# the service, until Ctrl-C",
            f"{_program('raverse')} serve --config {shlex.quote(config_argument)}{options}",
            "# one picture from it",
            f"curl -s {address} -H 'Content-Type: application/json' -d {body} | {_DECODE_PICTURE}",
        ]
    )


def _example_prompt(result: JobResult) -> str:
    """A caption that the model has learnt."""
    for outcome in result.outcomes:
        file = outcome.artifact.folder / "data.json"
        if file.is_file():
            return str(json.loads(file.read_text())["candidate_captions"][0])
    return "a picture"


def _reports_same(target: Path, result: JobResult) -> bool:
    try:
        return bool(json.loads(target.read_text())["artifacts"] == _folders(result))
    except (OSError, ValueError, KeyError):
        return False


def _folders(result: JobResult) -> dict[str, str]:
    return {outcome.artifact.stage: str(outcome.artifact.folder) for outcome in result.outcomes}


def _seconds(result: JobResult) -> dict[str, Any]:
    """Overhead: Ray's start, what lies between stages, and what stages count as `overhead_seconds`."""
    ran = [outcome.artifact for outcome in result.outcomes if not outcome.skipped]
    between = result.seconds - sum(artifact.seconds for artifact in ran)
    inside = sum(artifact.metrics.get("overhead_seconds", 0.0) for artifact in ran)
    return {
        "total": round(result.seconds, 2),
        "ray_start": round(result.session_seconds, 2),
        "overhead": round(between + inside, 2),
        "stages": {outcome.artifact.stage: round(outcome.artifact.seconds, 2) for outcome in result.outcomes},
        "skipped": [outcome.artifact.stage for outcome in result.outcomes if outcome.skipped],
    }


def _versions() -> dict[str, str]:
    others = {name: metadata.version(name) for name in _PACKAGES}
    return {"raverse": __version__, "python": platform.python_version()} | others


def _figures(outcome: Outcome) -> str:
    values = outcome.artifact.metrics.items()
    # Hashes and ids are in the report; they would push the figures out of the table.
    numbers = {name: value for name, value in values if isinstance(value, (int, float)) or _is_short_text(value)}
    shown = list(numbers.items())[:_FIGURES_SHOWN]
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown)


def _is_short_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT_SHOWN


def _program(name: str) -> str:
    """The shortest way to call a program of this environment from here."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) == str(beside) else _short(beside)


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
