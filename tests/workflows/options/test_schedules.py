"""Noise schedules by name: each is a constructor of the core, and every constructor of a kind is there."""

from __future__ import annotations

import inspect

import pytest
import torch

from diffusion_core.schedule import NoiseSchedule
from workflows.config.load import load_config
from workflows.config.schema import ScheduleConfig
from workflows.errors import InvalidConfig
from workflows.options.schedules import SCHEDULES
from workflows.train.networks import noise_schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_is_configured_swept_and_made_by_its_name(name: str) -> None:
    items = [f"denoiser.schedule.kind={name}", "denoiser.schedule.num_levels=100", f"sweep.schedules=[{name}]"]
    config = load_config("digits", items)
    assert config.sweep.schedules == (name,)
    wanted = getattr(NoiseSchedule, name)(100)
    assert torch.equal(noise_schedule(config.denoiser.schedule).alpha_bar, wanted.alpha_bar)


def test_they_differ_and_the_first_is_the_default() -> None:
    found = [noise_schedule(ScheduleConfig(kind=name, num_levels=100)).alpha_bar for name in SCHEDULES]
    assert len({tuple(alpha_bar.tolist()) for alpha_bar in found}) == len(SCHEDULES)
    assert ScheduleConfig().kind == SCHEDULES[0]


def test_every_constructor_that_takes_levels_is_there() -> None:
    made = {
        name
        for name, member in inspect.getmembers(NoiseSchedule, inspect.ismethod)
        if next(iter(inspect.signature(member).parameters), "") == "num_levels" and not name.startswith("_")
    }
    assert made == set(SCHEDULES)


@pytest.mark.parametrize("item", ["denoiser.schedule.kind=from_betas", "sweep.schedules=[quadratic]"])
def test_another_name_is_refused_with_those_there_are(item: str) -> None:
    with pytest.raises(InvalidConfig, match="'cosine', 'linear', 'scaled_linear', 'sigmoid' or 'flow'"):
        load_config("digits", [item])
