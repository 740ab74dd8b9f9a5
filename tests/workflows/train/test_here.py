"""Steps that are timed on this machine before a job starts."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from workflows.config.load import load_config
from workflows.data.rows import Pictures, rows_of
from workflows.train import here
from workflows.train.here import Subject, foreseen
from workflows.train.length import PACES

DIGITS = Subject(Pictures((1, 8, 8)), 1437, 10, 10, 16)


@pytest.mark.parametrize("part", ["clip", "denoiser", "classifier"])
def test_every_part_is_timed(part: str) -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    found = foreseen(part, load_config("digits"), DIGITS)  # type: ignore[arg-type]
    assert found is not None
    assert found.rows == 1437
    assert found.step_seconds > 0.0
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not dist.is_initialized()


def test_auto_is_what_the_pace_gives() -> None:
    vectors = Subject(rows_of((3,)), 400, 0, 100, 16)
    config = load_config("vectors", ["data.path=rows.parquet", "denoiser.train.minutes=0.001"])
    found = foreseen("denoiser", config, vectors)
    assert found is not None
    assert found.steps == PACES["denoiser"].steps(400, 32, 0.001, found.step_seconds)


def test_what_a_base_or_loaded_towers_take_is_not_guessed() -> None:
    assert foreseen("clip", load_config("digits", ["clip.source=ViT-B-32/openai"]), DIGITS) is None
    assert foreseen("denoiser", load_config("digits", ["denoiser.base=sd@champion"]), DIGITS) is None
    assert foreseen("denoiser", load_config("digits", ["clip.source=ViT-B-32/openai"]), DIGITS) is not None


def test_what_is_too_large_to_be_tried_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("a step was made")

    monkeypatch.setattr(here, "_step_seconds", refuse)
    for item in ("network.width=4096", "train.batch_size=1000000"):
        assert foreseen("denoiser", load_config("digits", [f"denoiser.{item}"]), DIGITS) is None
    with pytest.raises(AssertionError, match="a step was made"):
        foreseen("denoiser", load_config("digits"), DIGITS)


def test_a_larger_network_takes_longer() -> None:
    small, large = (
        foreseen("denoiser", load_config("digits", [f"denoiser.network.width={width}"]), DIGITS) for width in (32, 512)
    )
    assert small is not None
    assert large is not None
    assert large.step_seconds > 3.0 * small.step_seconds
