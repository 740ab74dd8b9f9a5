"""The report, the table and the lines to copy."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.job.pipeline import JobResult, Outcome
from workflows.job.report import next_lines, stage_table, write_report
from workflows.runtime.artifact import Artifact
from workflows.runtime.git import git_state


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config("digits", [f"storage.root={tmp_path}"])


@pytest.fixture
def result(tmp_path: Path) -> JobResult:
    """Data skipped; the denoiser took 10 s, 4 of them overhead; the job 20 s, 6 of them Ray's start."""
    outcomes = []
    for stage, skipped, metrics in (
        ("data", True, {"data_hash": "f" * 64, "num_train": 1437}),
        ("denoiser", False, {"loss": 0.123456, "steps": 1500, "overhead_seconds": 4.0, "curve": [1, 2]}),
        ("evaluate", False, {"accuracy": 0.97}),
    ):
        folder = tmp_path / "artifacts" / stage / "k"
        folder.mkdir(parents=True)
        outcomes.append(Outcome(Artifact(stage, "k" * 64, folder, {}, metrics, 3.0 if skipped else 5.0), skipped))
    (tmp_path / "artifacts" / "data" / "k" / "data.json").write_text('{"candidate_captions": ["a girl\'s seven"]}')
    (tmp_path / "artifacts" / "denoiser" / "k" / "losses.png").write_bytes(b"curve")
    (tmp_path / "artifacts" / "evaluate" / "k" / "samples.png").write_bytes(b"grid")
    return JobResult(tuple(outcomes), seconds=20.0, session_seconds=6.0)


def test_report_holds_what_the_run_was(config: RunConfig, result: JobResult) -> None:
    target = write_report(config, result)
    assert target == config.run_folder / "report.json"
    report = json.loads(target.read_text())
    assert report["config"]["denoiser"]["train"]["steps"] == config.denoiser.train.steps
    assert report["config"]["register"]["model_name"] == "raverse-digits"
    assert report["metrics"]["evaluate"] == {"accuracy": 0.97}
    assert report["seconds"] == {
        "total": 20.0,
        "ray_start": 6.0,
        "overhead": (20.0 - 2 * 5.0) + 4.0,
        "stages": {"data": 3.0, "denoiser": 5.0, "evaluate": 5.0},
        "skipped": ["data"],
    }
    assert {"raverse", "ray", "torch", "python"} <= set(report["versions"])
    assert (config.run_folder / "samples.png").read_bytes() == b"grid"
    assert (config.run_folder / "denoiser-losses.png").read_bytes() == b"curve"


def test_a_job_with_nothing_to_do_keeps_the_report(config: RunConfig, result: JobResult) -> None:
    write_report(config, result)
    skipped = replace(result, outcomes=tuple(replace(o, skipped=True) for o in result.outcomes), seconds=0.1)
    write_report(config, skipped)
    assert json.loads((config.run_folder / "report.json").read_text())["seconds"]["total"] == 20.0
    (config.run_folder / "report.json").unlink()
    write_report(config, skipped)
    assert json.loads((config.run_folder / "report.json").read_text())["seconds"]["total"] == 0.1


def test_table_shows_seconds_and_first_figures(result: JobResult) -> None:
    screen = io.StringIO()
    Console(file=screen, width=120).print(stage_table(result))
    text = screen.getvalue()
    assert "20.0 s in all" in text
    assert "skipped" in text
    assert "loss 0.1235, steps 1500" in text
    assert "[1, 2]" not in text
    assert "num_train 1437" in text
    assert "ffff" not in text


def test_lines_to_copy_survive_a_shell(config: RunConfig, result: JobResult) -> None:
    lines = next_lines(config, result, "my photos.yaml", ["serve.port=8001", "name=a b"]).splitlines()
    serve = next(line for line in lines if " serve --config " in line)
    assert shlex.split(serve)[1:] == [
        "serve", "--config", "my photos.yaml", "--set", "serve.port=8001", "--set", "name=a b",
    ]  # fmt: skip
    curl = next(line for line in lines if line.startswith("curl "))
    words = shlex.split(curl)
    assert words[words.index("-d") + 1] == json.dumps({"prompt": "a girl's seven"})
    assert any("mlflow" in line and f"sqlite:///{config.root_folder}/mlflow.db" in line for line in lines)


def test_git_state_is_this_checkout() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert git_state().get("commit", "") == head.stdout.strip()
