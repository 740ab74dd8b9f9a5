"""The plan is a pure function of the seed and of the number of rows seen."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from workflows.errors import InvalidData
from workflows.train.batches import Share
from workflows.train.plan import Plan, PlannedRows

COLUMNS = ("numbers", "samples", "wordings", "level_draws", "dropped")


def columns(rows: PlannedRows) -> torch.Tensor:
    return torch.stack([getattr(rows, name).double() for name in COLUMNS])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_epoch_visits_every_sample_once_at_any_world_size(size: int) -> None:
    plan = Plan(seed=3, num_samples=37, batch_size=10)
    visited = []
    for step in range(37):
        batch = plan.batch(10 * step)
        shares = [batch.rows(Share(rank, size).rows) for rank in range(size)]
        assert sum(map(len, shares)) == 10
        merged = torch.cat([columns(share) for share in shares], dim=1)
        assert torch.equal(merged[:, merged[0].argsort()], columns(batch))
        visited.append(batch.samples)
    epochs = torch.cat(visited).split(37)
    assert all(torch.equal(epoch.sort().values, torch.arange(37)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_row_depends_on_its_number_alone() -> None:
    whole = Plan(seed=5, num_samples=23, batch_size=64, condition_dropout=0.3).batch(100)
    for batch_size in (1, 7, 50):
        part = Plan(seed=5, num_samples=23, batch_size=batch_size, condition_dropout=0.3).batch(109)
        assert torch.equal(columns(part), columns(whole)[:, 9 : 9 + batch_size])


def test_another_seed_is_another_plan() -> None:
    one, other = (columns(Plan(seed, 1000, 64, condition_dropout=0.5).batch(0)) for seed in (0, 1))
    assert torch.equal(one[0], other[0])
    assert all(not torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


def test_levels_cover_the_schedule_evenly_in_every_batch() -> None:
    plan = Plan(seed=0, num_samples=100, batch_size=64)
    for step in range(20):
        counts = torch.histc(plan.batch(64 * step).level_draws.float(), bins=8, min=0.0, max=1.0)
        assert counts.min() >= 6 and counts.max() <= 10
    independent = torch.histc(torch.rand(64, generator=torch.Generator().manual_seed(0)), bins=8, min=0.0, max=1.0)
    assert independent.min() < 6 or independent.max() > 10


@pytest.mark.parametrize("shift", [1 / 3, 1.0, 3.0])
def test_the_shift_moves_levels_as_its_formula_says(shift: float) -> None:
    """P(place <= p) = p / (shift - (shift - 1) p), the inverse of the formula at uniform u."""
    place = Plan(seed=0, num_samples=10, batch_size=20_000, level_shift=shift).batch(0).level_draws
    assert float(place.min()) >= 0.0 and float(place.max()) < 1.0
    for p in (0.1, 0.5, 0.9):
        assert float((place <= p).double().mean()) == pytest.approx(p / (shift - (shift - 1.0) * p), abs=2e-3)


def test_logit_normal_levels_are_mostly_in_the_middle_and_visit_both_ends() -> None:
    """P(place <= p) = .02 p + .98 Phi(log(p / (1 - p)))."""
    place = Plan(seed=0, num_samples=10, batch_size=20_000, level_density="logit_normal").batch(0).level_draws
    assert float(place.min()) >= 0.0 and float(place.max()) < 1.0
    for p in (0.001, 0.1, 0.5, 0.9, 0.999):
        wanted = 0.02 * p + 0.98 * NormalDist().cdf(math.log(p / (1 - p)))
        assert float((place <= p).double().mean()) == pytest.approx(wanted, abs=2e-3)
    assert float((place > 0.999).double().mean()) > 0, "sampling starts there"


def test_the_share_of_hidden_conditions_is_the_wanted_one() -> None:
    dropped = Plan(seed=0, num_samples=10, batch_size=20_000, condition_dropout=0.1).batch(0).dropped
    assert abs(float(dropped.float().mean()) - 0.1) < 0.01
    assert not Plan(seed=0, num_samples=10, batch_size=1000).batch(0).dropped.any()


def test_what_is_hidden_does_not_depend_on_what_else_is_drawn() -> None:
    """Hidden rows say all wordings and have all levels alike: four deviations of a correlation of 20,000 rows."""
    rows = Plan(seed=0, num_samples=10, batch_size=20_000, condition_dropout=0.1).batch(0)
    for other in (rows.wordings, rows.level_draws, rows.samples):
        both = torch.stack([rows.dropped.double(), other.double()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / 20_000**0.5
    tied = torch.stack([(rows.wordings < rows.wordings.double().quantile(0.1)).double(), rows.wordings.double()])
    assert abs(float(torch.corrcoef(tied)[0, 1])) > 0.1, "negative control: hidden by the wording's own draw"


def test_any_of_many_wordings_is_drawn() -> None:
    draws = Plan(seed=0, num_samples=10, batch_size=4096).batch(0).wordings
    assert len((draws % 1000).unique()) > 900


def test_no_samples_are_refused() -> None:
    with pytest.raises(InvalidData, match="nothing to train on"):
        Plan(seed=0, num_samples=0, batch_size=4)
