"""The stage table: order, skipping, keys, resuming, checks and the report, with stages of plain files."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.errors import AddressInUse, MissingArtifact
from workflows.job.pipeline import Stage, plan_job, run_job, run_one
from workflows.job.stages import STAGES
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress


class Counting:
    """Three stages that append to a log, and a session that counts its entries."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.sessions = 0
        self.fail_in = ""

    @contextlib.contextmanager
    def session(self, config: RunConfig) -> Iterator[None]:
        self.sessions += 1
        yield

    def function(
        self, config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress
    ) -> dict[str, Any]:
        name = folder.parent.name
        self.ran.append(name)
        if name == self.fail_in:
            (folder / "half").write_text("left behind")
            raise RuntimeError(name)
        text = "+".join(sorted(path.folder.joinpath("out").read_text() for path in inputs.values())) + name
        (folder / "out").write_text(text)
        return {"length": len(text)}

    def table(self) -> tuple[Stage, ...]:
        def load() -> Any:
            return self.function

        return (
            Stage("one", "First.", load, lambda config: {"seed": config.data.seed}),
            Stage("two", "Second.", load, lambda config: {"steps": config.clip.steps}, ("one",)),
            Stage("three", "Third.", load, lambda config: {}, ("one", "two")),
        )


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config("digits", [f"storage.root={tmp_path}"])


def with_(config: RunConfig, *items: str) -> RunConfig:
    return load_config("digits", [f"storage.root={config.storage.root}", *items])


def go(counting: Counting, config: RunConfig) -> list[str]:
    """Runs the job and says which stages ran."""
    counting.ran.clear()
    run_job(config, Progress.silent(), plan_job(config, counting.table()), counting.session)
    return list(counting.ran)


def test_stages_run_in_order_and_hand_files_on(counting: Counting, config: RunConfig) -> None:
    result = run_job(config, Progress.silent(), plan_job(config, counting.table()), counting.session)
    assert counting.ran == ["one", "two", "three"]
    last = result.outcomes[-1].artifact
    assert (last.folder / "out").read_text() == "one+onetwothree"
    assert last.metrics == {"length": len("one+onetwothree")}
    assert set(last.inputs) == {"one", "two"}


def test_a_second_job_skips_everything_and_opens_no_session(counting: Counting, config: RunConfig) -> None:
    assert go(counting, config) == ["one", "two", "three"]
    assert counting.sessions == 1
    assert go(counting, config) == []
    assert counting.sessions == 1


def test_a_change_reruns_what_depends_on_it_and_nothing_else(counting: Counting, config: RunConfig) -> None:
    go(counting, config)
    assert go(counting, with_(config, "clip.steps=7")) == ["two", "three"]
    assert go(counting, with_(config, "serve.port=8123")) == []
    assert go(counting, with_(config, "data.seed=5")) == ["one", "two", "three"]
    assert go(counting, config) == []


def test_a_new_code_version_reruns_the_stage(counting: Counting, config: RunConfig) -> None:
    go(counting, config)
    table = counting.table()
    changed = (table[0], replace(table[1], version=2), table[2])
    counting.ran.clear()
    run_job(config, Progress.silent(), plan_job(config, changed), counting.session)
    assert counting.ran == ["two", "three"]


def test_a_failed_stage_is_run_again_in_the_same_folder(counting: Counting, config: RunConfig) -> None:
    counting.fail_in = "two"
    with pytest.raises(RuntimeError, match="two"):
        go(counting, config)
    folder = plan_job(config, counting.table())[1].folder
    assert (folder / "half").is_file()
    counting.fail_in = ""
    assert go(counting, config) == ["two", "three"]
    assert (folder / "half").is_file()


def test_a_stage_that_cannot_go_on_says_which_setting_of_the_stopped_try_was_another(
    counting: Counting, config: RunConfig
) -> None:
    def told(settings: RunConfig) -> str:
        log = io.StringIO()
        with contextlib.suppress(RuntimeError):
            run_job(settings, Progress(None, log), plan_job(settings, counting.table()), counting.session)
        return log.getvalue()

    counting.fail_in = "two"
    assert "unfinished" not in told(config)
    stopped = plan_job(config, counting.table())[1].folder
    assert "unfinished" not in told(config), "it goes on in its own folder"
    other = told(with_(config, "clip.steps=7"))
    assert f"two: does not go on from the unfinished try in {stopped}: config.steps was 300 and is 7\n" in other
    counting.fail_in = ""
    go(counting, config)
    assert "config.steps was 7 and is 5\n" in told(with_(config, "clip.steps=5")), "a finished try is no stopped one"
    assert "inputs.one was" in told(with_(config, "data.seed=4", "clip.steps=7"))


def test_one_stage_needs_its_inputs(counting: Counting, config: RunConfig) -> None:
    plan = plan_job(config, counting.table())
    with pytest.raises(MissingArtifact, match="raverse one"):
        run_one(config, Progress.silent(), plan, "two", counting.session)
    assert counting.sessions == 0
    run_one(config, Progress.silent(), plan, "one", counting.session)
    outcome = run_one(config, Progress.silent(), plan_job(config, counting.table()), "two", counting.session)
    assert not outcome.skipped
    assert run_one(config, Progress.silent(), plan_job(config, counting.table()), "two", counting.session).skipped


def test_checks_come_before_any_work_and_only_for_what_is_to_run(counting: Counting, config: RunConfig) -> None:
    def refuse(config: RunConfig) -> None:
        raise AddressInUse("taken")

    table = counting.table()
    checked = (*table[:2], replace(table[2], checks=(refuse,)))
    with pytest.raises(AddressInUse):
        run_job(config, Progress.silent(), plan_job(config, checked), counting.session)
    assert counting.ran == []
    go(counting, config)
    run_job(config, Progress.silent(), plan_job(config, checked), counting.session)


def test_a_broken_marker_counts_as_unfinished(counting: Counting, config: RunConfig) -> None:
    go(counting, config)
    (plan_job(config, counting.table())[2].folder / "artifact.json").write_text('{"stage": ')
    assert go(counting, config) == ["three"]


def test_an_exit_inside_a_stage_is_an_interrupt_and_handlers_come_back(counting: Counting, config: RunConfig) -> None:
    """What Ray Train does on Ctrl-C: it replaces the handler for good, and exits with 0 from it."""

    def exits(*arguments: Any) -> dict[str, Any]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(0)

    before = signal.getsignal(signal.SIGINT)
    table = (replace(counting.table()[0], load=lambda: exits),)
    with pytest.raises(KeyboardInterrupt):
        run_job(config, Progress.silent(), plan_job(config, table), counting.session)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_real_table_names_only_earlier_stages(config: RunConfig) -> None:
    seen: set[str] = set()
    for stage in STAGES:
        assert set(stage.inputs) <= seen, stage.name
        seen.add(stage.name)
        json.dumps(stage.sections(config))
    assert [planned.stage.name for planned in plan_job(config, STAGES)] == [
        "data", "clip", "embed", "denoiser", "classifier", "evaluate", "register", "serve-check",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "changed"),
    [
        ("data.seed=3", {"data", "clip", "embed", "denoiser", "classifier", "evaluate", "register", "serve-check"}),
        ("clip.steps=3", {"clip", "embed", "denoiser", "classifier", "evaluate", "register", "serve-check"}),
        ("embed.batch_size=3", set()),
        ("embed.dtype=float16", {"embed", "denoiser", "classifier", "evaluate", "register", "serve-check"}),
        ("denoiser.train.steps=3", {"denoiser", "evaluate", "register", "serve-check"}),
        ("denoiser.schedule.kind=linear", {"denoiser", "classifier", "evaluate", "register", "serve-check"}),
        ("denoiser.train.log_every=3", set()),
        ("classifier.train.steps=3", {"classifier", "evaluate", "register", "serve-check"}),
        ("evaluate.batch_size=3", set()),
        ("evaluate.num_prompts=3", {"evaluate", "register", "serve-check"}),
        ("register.alias=challenger", {"register", "serve-check"}),
        ("serve.port=8123", {"serve-check"}),
        ("name=other", set()),
    ],
)
def test_what_each_key_invalidates(config: RunConfig, item: str, changed: set[str]) -> None:
    def keys(settings: RunConfig) -> dict[str, str]:
        return {planned.stage.name: planned.key for planned in plan_job(settings, STAGES)}

    before, after = keys(config), keys(with_(config, item))
    assert {name for name in before if before[name] != after[name]} == changed


def test_towers_that_change_under_the_same_path_are_another_artifact(config: RunConfig, tmp_path: Path) -> None:
    towers = tmp_path / "towers"
    towers.mkdir()
    (towers / "open_clip_config.json").write_text("{}")
    settings = with_(config, f"clip.source=local-dir:{towers}")
    before = plan_job(settings, STAGES)[1].key
    assert plan_job(settings, STAGES)[1].key == before
    (towers / "open_clip_config.json").write_text('{"a": 1}')
    assert plan_job(settings, STAGES)[1].key != before
