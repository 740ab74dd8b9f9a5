"""Lists of levels against diffusers' timesteps, and what every list keeps."""

from __future__ import annotations

import itertools

import diffusers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core import spacing
from diffusion_core.errors import InvalidLevels
from diffusion_core.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear(1000)
SPACINGS = {
    "trailing": spacing.trailing,
    "leading": spacing.leading,
    "linspace": spacing.linspace,
    "quadratic": spacing.quadratic,
}


last_and_steps = st.integers(1, 60).flatmap(lambda last: st.tuples(st.just(last), st.integers(1, last)))


@pytest.mark.parametrize("name", SPACINGS)
@given(last_and_steps)
def test_every_spacing_descends_to_zero_in_as_many_steps(name, case):
    schedule, num_steps = NoiseSchedule.linear(case[0]), case[1]
    levels = SPACINGS[name](schedule, num_steps)
    assert len(levels) == num_steps + 1 and levels[-1] == 0
    assert all(after < here for here, after in itertools.pairwise(levels))
    assert levels[0] == schedule.num_levels or (name == "leading" and levels[0] < schedule.num_levels)
    assert spacing.checked_levels(schedule, levels) == levels


@pytest.mark.parametrize("name", SPACINGS)
@given(st.integers(1, 60))
def test_all_steps_visit_all_levels(name, last):
    schedule = NoiseSchedule.linear(last)
    assert SPACINGS[name](schedule, last) == tuple(range(last, -1, -1))


@pytest.mark.parametrize("num_steps", [1, 2, 7, 10, 50, 333, 999, 1000])
@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
def test_against_diffusers(name, num_steps):
    """Its timestep t is our level t + 1."""
    if name == "linspace" and num_steps == 1:
        pytest.skip("its single step of linspace is timestep 0, ours is the noisiest level")
    peer = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing=name, steps_offset=0)
    peer.set_timesteps(num_steps)
    wanted = [int(t) + 1 for t in peer.timesteps]
    assert list(SPACINGS[name](SCHEDULE, num_steps)[:-1]) == wanted


def test_known_lists():
    assert spacing.trailing(SCHEDULE, 5) == (1000, 800, 600, 400, 200, 0)
    assert spacing.trailing(SCHEDULE, 3) == (1000, 667, 333, 0)
    assert spacing.leading(SCHEDULE, 5) == (801, 601, 401, 201, 1, 0)
    assert spacing.leading(SCHEDULE, 5, offset=1) == (802, 602, 402, 202, 2, 0)
    assert spacing.linspace(SCHEDULE, 5) == (1000, 750, 501, 251, 1, 0)
    assert spacing.linspace(SCHEDULE, 1) == (1000, 0)
    assert spacing.quadratic(SCHEDULE, 5) == (1000, 640, 360, 160, 40, 0)


def test_leading_never_visits_the_last_level_but_with_all_steps():
    assert all(spacing.leading(SCHEDULE, n)[0] < 1000 for n in range(1, 1000) if n != 1000)
    assert spacing.leading(SCHEDULE, 1000)[0] == 1000


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(name, num_steps):
    with pytest.raises(InvalidLevels, match=f"found num_steps={num_steps}, wanted 1..1000"):
        SPACINGS[name](SCHEDULE, num_steps)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least one noisy level"),
        ([0], "at least one noisy level"),
        ([5, 3], "and then a final 0"),
        ([5, 5, 0], "found 5 then 5 at position 0"),
        ([9, 3, 4, 0], "found 3 then 4 at position 1"),
        ([1001, 0], "level 1001 is above the schedule's last level 1000"),
        ([3, -1, 0], "found -1 then 0 at position 1"),
    ],
)
def test_a_bad_list_is_refused_with_the_place(levels, message):
    with pytest.raises(InvalidLevels, match=message):
        spacing.checked_levels(SCHEDULE, levels)


def test_an_offset_that_leaves_the_schedule_is_refused():
    with pytest.raises(InvalidLevels, match="above the schedule's last level"):
        spacing.leading(SCHEDULE, 1000, offset=1)
