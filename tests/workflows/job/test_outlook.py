"""What a job says before it trains."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.data.stage import build_data
from workflows.job.outlook import outlook
from workflows.job.pipeline import Stage, plan_job, run_job
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress

ALL = ("clip", "denoiser", "classifier", "evaluate")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("data")
    build_data(load_config("digits"), {}, folder, Progress.silent())
    return Artifact("data", "data", folder, {}, {}, 0.0)


def test_the_outlook_names_rows_steps_and_what_is_judged(data: Artifact) -> None:
    head, clip, denoiser, classifier, evaluate = outlook(load_config("digits"), data, ALL)
    assert head == "data: 1,438 pictures to train on, 359 held out"
    assert clip.startswith("clip: 300 steps of 64 rows, 13 epochs of 1,438 rows, about ")
    assert denoiser.startswith("denoiser: 1,000 steps of 32 rows, 22 epochs of 1,438 rows, about ")
    assert classifier.startswith("classifier: 700 steps of 32 rows, 16 epochs of 1,438 rows, about ")
    assert all(line.endswith("ms a step, measured)") for line in (clip, denoiser, classifier))
    assert evaluate.startswith("evaluate: 500 prompts")
    assert "a judge of classes" in evaluate


def test_what_is_finished_is_not_told_again(data: Artifact) -> None:
    assert len(outlook(load_config("digits"), data, ["register"])) == 1
    assert [line.split(":")[0] for line in outlook(load_config("digits"), data, ["classifier"])] == [
        "data",
        "classifier",
    ]


def test_it_is_told_after_the_data_and_before_the_rest(tmp_path: Path) -> None:
    screen, config = io.StringIO(), load_config("digits", [f"storage.root={tmp_path}"])

    def load() -> object:
        return lambda config, inputs, folder, progress: progress.log("works") or {}

    @contextlib.contextmanager
    def session(config: RunConfig) -> Iterator[None]:
        yield

    def told(config: RunConfig, first: Artifact, unfinished: object) -> list[str]:
        return [f"{first.stage} is there, {unfinished} to come"]

    stages = (
        Stage("data", "First.", load, lambda config: {}),  # type: ignore[arg-type]
        Stage("two", "Second.", load, lambda config: {}, ("data",)),  # type: ignore[arg-type]
        Stage("three", "Third.", load, lambda config: {}, ("data", "two")),  # type: ignore[arg-type]
    )
    run_job(config, Progress(Console(file=screen, width=120)), plan_job(config, stages), session, told)
    lines = [line for line in screen.getvalue().splitlines() if "works" in line or "to come" in line]
    wanted = "data is there, ['data', 'two', 'three'] to come"
    assert lines == ["data: works", wanted, "two: works", "three: works"]
