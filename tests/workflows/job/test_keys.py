"""The keys of the stages: which setting changes which of them, as a golden list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.workflows.job.stage_keys import GOLDEN, ONE_VALUE, leaves, lines
from workflows.config.schema import RunConfig
from workflows.job.stages import STAGES


def test_every_setting_changes_the_keys_that_the_golden_list_says(tmp_path: Path) -> None:
    assert lines(tmp_path) == GOLDEN.read_text().splitlines()


def test_the_golden_list_has_every_setting_with_another_value() -> None:
    rows = [line.split(": ") for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    assert [key for key, _ in rows] == leaves() * 3
    assert {key for key, stages in rows if stages != ONE_VALUE} == set(leaves())


def test_a_key_without_one_of_its_settings_is_noticed(tmp_path: Path) -> None:
    def forgets(config: RunConfig) -> dict[str, object]:
        return {name: value for name, value in config.evaluate.keyed().items() if name != "gradient_eta"}

    stages = [replace(stage, sections=forgets) if stage.name == "evaluate" else stage for stage in STAGES]
    found = lines(tmp_path, stages)
    assert [line for line in found if line not in GOLDEN.read_text().splitlines()] == ["evaluate.gradient_eta: -"] * 3
