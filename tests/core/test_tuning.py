"""Tables that are fitted keep every rule of a plan, and beat DPM-Solver++ on seeds that they never saw."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core import spacing
from diffusion_core.errors import InvalidLevels
from diffusion_core.oracle import GaussianMixture, OracleDenoiser
from diffusion_core.sampler import SamplerPlan, ddim, dpm_solver
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import sample
from diffusion_core.tuning import TunedTable, tune

F64 = torch.float64
SHAPE = (2,)
SEEN, UNSEEN = range(1000, 1024), range(5000, 5032)


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.6], [0.9, 0.4], [0.1, -1.1]], dtype=F64)
    weights, deviations = torch.tensor([[0.3, 0.3, 0.4], [0.25, 0.15, 0.2]], dtype=F64)
    return GaussianMixture(weights, means, deviations, torch.tensor([0, 1, 2]))


@pytest.fixture(scope="module", params=["cosine", "linear", "flow"])
def oracle(request: pytest.FixtureRequest) -> OracleDenoiser:
    return OracleDenoiser(mixture(), getattr(NoiseSchedule, request.param)())


def ends(oracle: OracleDenoiser, plan: SamplerPlan) -> torch.Tensor:
    return sample(oracle, plan, None, seeds=UNSEEN, shape=SHAPE, dtype=F64)


def tuned(oracle: OracleDenoiser, num_steps: int) -> TunedTable:
    return tune(oracle, None, num_steps=num_steps, seeds=SEEN, shape=SHAPE, reference_steps=100)


def test_a_tuned_table_ends_nearer_to_the_truth_on_seeds_that_it_never_saw(oracle):
    """Nearer than DPM-Solver++ on any spacing, at every number of steps: the order does not fall below its order."""
    schedule, places = oracle.schedule, (spacing.trailing, spacing.quadratic, spacing.linspace)
    truth = ends(oracle, ddim(schedule, spacing.trailing(schedule, 250)))

    def apart(plan: SamplerPlan) -> float:
        return float((ends(oracle, plan) - truth).norm(dim=1).median())

    errors = []
    for num_steps in (3, 6):
        found = tuned(oracle, num_steps)
        assert len(found.levels) == num_steps + 1
        errors.append(apart(found.plan(schedule)))
        assert errors[-1] < min(apart(dpm_solver(schedule, place(schedule, num_steps))) for place in places)
    assert errors[0] > errors[1]


def test_the_same_seeds_give_the_same_table(oracle):
    assert tuned(oracle, 3) == tuned(oracle, 3)


def test_gains_of_one_are_dpm_solver():
    schedule = NoiseSchedule.cosine()
    levels = spacing.trailing(schedule, 7)
    found, wanted = TunedTable(levels, (1.0,) * 7).plan(schedule), dpm_solver(schedule, levels)
    for name in ("A", "B", "C", "D"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-14)


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=12, unique=True),
    st.lists(st.floats(-20.0, 20.0), min_size=12, max_size=12),
    st.sampled_from(["cosine", "linear", "flow"]),
)
def test_any_gains_keep_the_rules_of_a_plan(inner, gains, kind):
    """`SamplerPlan` refuses a table that breaks one."""
    levels = (*sorted(inner, reverse=True), 0)
    plan = TunedTable(levels, tuple(gains[: len(inner)])).plan(getattr(NoiseSchedule, kind)())
    assert plan.levels == levels
    assert float(plan.C[0]) == float(plan.C[-1]) == 0.0


@pytest.mark.parametrize("num_steps", [0, 1, 1001])
def test_steps_that_no_table_can_have_are_refused(oracle, num_steps):
    with pytest.raises(InvalidLevels, match=f"num_steps={num_steps}, wanted 2..1000"):
        tune(oracle, None, num_steps=num_steps, seeds=[0], shape=SHAPE)


@pytest.mark.parametrize(
    ("levels", "gains", "message"),
    [
        ((1000, 0), (1.0, 1.0), "2 gains for 1 steps"),
        ((2000, 500, 0), (1.0, 1.0), "above the schedule"),
        ((500, 600, 0), (1.0, 1.0), "must descend"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(levels, gains, message):
    with pytest.raises(InvalidLevels, match=message):
        TunedTable(levels, gains).plan(NoiseSchedule.cosine())
