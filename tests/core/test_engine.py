"""The step engine: rows beside others equal rows alone, faults stay in their row, nothing is left behind."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import pytest
import torch

from diffusion_core import spacing
from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.engine import RoundRobin, StepEngine
from diffusion_core.errors import InvalidGuidance, InvalidPlan, InvalidShape, NonFinite
from diffusion_core.guidance import ClassifierFreeGuidance, GradientGuidance, Thresholding
from diffusion_core.networks import DiT, DiTConfig
from diffusion_core.row import Trajectory
from diffusion_core.sampler import ddim, ddpm, dpm_solver
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import run, sample

pytestmark = pytest.mark.usefixtures("unchecked")
SCHEDULE, SHAPE, F64 = NoiseSchedule.cosine(), (3, 4, 4), torch.float64


class Elementwise:
    """A denoiser's network whose every element depends on itself, its row's level and its row's target alone."""

    def __init__(self, fault_above: float = math.inf) -> None:
        self.rows_seen: list[int] = []
        self._fault_above = fault_above

    def __call__(self, x: torch.Tensor, level: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        self.rows_seen.append(len(x))
        time = (level / 1000.0)[:, None, None, None]
        target = torch.zeros_like(time)
        if condition is not None and condition.label is not None:
            target = torch.where(condition.present, condition.label, 0.0).to(x.dtype)[:, None, None, None]
        if condition is not None and condition.label is not None and bool((condition.label > 1e6).any()):
            raise RuntimeError("label out of the table")
        out = torch.tanh(x * time) + 0.1 * target
        return torch.where(target > self._fault_above, math.nan, out)


def guided(network: Elementwise) -> Thresholding:
    def log_density(x: torch.Tensor, level: torch.Tensor, condition: Condition) -> torch.Tensor:
        assert condition.label is not None
        return -((x - condition.label[:, None, None, None]) ** 2).flatten(1).sum(dim=1) / 50.0

    plain = NetworkDenoiser(network, SCHEDULE, "v")
    with_clip = GradientGuidance(ClassifierFreeGuidance(plain), log_density, name="clip", at="x0")
    return Thresholding(GradientGuidance(with_clip, log_density), clip_x0=1.0)


def mixed_rows(num_rows: int, dtype: torch.dtype = F64) -> list[Trajectory]:
    """Samplers, lengths, guidance and seeds in every combination that 64 rows allow."""
    rows = []
    for i in range(num_rows):
        levels = spacing.trailing(SCHEDULE, 3 + i % 11)
        plan = [
            ddim(SCHEDULE, levels),
            ddim(SCHEDULE, levels, eta=0.3),
            ddpm(SCHEDULE, levels),
            ddpm(SCHEDULE, levels, "beta"),
            dpm_solver(SCHEDULE, levels),
            dpm_solver(SCHEDULE, levels, stochastic=True),
        ][i % 6]
        settings = [
            {},
            {"guidance_scale": 1.0 + i / 10},
            {"classifier_scale": 0.7},
            {"clip_scale": 0.5, "guidance_scale": 0.0},
            {"guidance_scale": 3.0, "guidance_rescale": 0.5, "apg_eta": 0.2},
            {"guidance_scale": 0.6, "cfg_plus_plus": 1.0},
            {"clip_x0": 0.0, "dynamic_threshold": 0.9},
        ][i % 7]
        condition = Condition.of(label=[i % 5]).with_settings(**settings)
        rows.append(Trajectory.start(plan, condition, seed=1000 + i, shape=SHAPE, dtype=dtype))
    return rows


@pytest.fixture
def engine() -> Iterator[StepEngine]:
    made = StepEngine(guided(Elementwise()), SHAPE, max_rows=24)
    yield made
    made.check()


def drain(engine: StepEngine) -> dict[int, torch.Tensor | Exception]:
    ended: dict[int, torch.Tensor | Exception] = {}
    while len(engine):
        for outcome in engine.tick():
            ended[outcome.row_id] = outcome.x0 if outcome.error is None else outcome.error
        engine.check()
    return ended


def test_64_staggered_rows_equal_their_solo_runs_bit_for_bit(engine):
    rows, ids, ended = mixed_rows(64), [], {}
    for i, row in enumerate(rows):
        ids.append(engine.submit(row))
        if i % 3 == 0:
            ended |= {outcome.row_id: outcome.x0 for outcome in engine.tick()}
    ended |= drain(engine)
    for row, row_id in zip(rows, ids, strict=True):
        alone = run(guided(Elementwise()), [row])[0]
        assert torch.equal(ended[row_id], alone), f"row {row_id} depends on its neighbours"
    other_seed = Trajectory.start(rows[1].plan, rows[1].condition, seed=999, shape=SHAPE, dtype=F64)
    assert not torch.equal(run(guided(Elementwise()), [other_seed])[0], ended[ids[1]])


def test_a_row_moved_to_another_engine_half_way_ends_in_the_same_sample(engine):
    row = mixed_rows(6)[5]
    row_id = engine.submit(row)
    for _ in range(3):
        engine.tick()
    moved = engine.state(row_id)
    assert moved is not None and moved.index == 3
    assert engine.cancel(row_id)
    other = StepEngine(guided(Elementwise()), SHAPE)
    second = other.submit(moved)
    assert torch.equal(drain(other)[second], run(guided(Elementwise()), [row])[0])


def test_a_nan_row_ends_alone():
    engine = StepEngine(guided(Elementwise(fault_above=50.0)), SHAPE)
    good = mixed_rows(8)
    bad = Trajectory.start(good[0].plan, Condition.of(label=[60]), seed=3, shape=SHAPE, dtype=F64)
    ids = [engine.submit(row) for row in [*good[:4], bad, *good[4:]]]
    ended = drain(engine)
    assert isinstance(ended.pop(ids.pop(4)), NonFinite)
    for row, row_id in zip(good, ids, strict=True):
        assert torch.equal(ended[row_id], run(guided(Elementwise()), [row])[0])


def test_a_row_whose_step_raises_ends_alone():
    engine = StepEngine(guided(Elementwise()), SHAPE)
    good = mixed_rows(4)
    bad = Trajectory.start(good[0].plan, Condition.of(label=[10**7]), seed=3, shape=SHAPE, dtype=F64)
    ids = [engine.submit(row) for row in [bad, *good]]
    ended = drain(engine)
    assert isinstance(ended.pop(ids.pop(0)), RuntimeError)
    for row, row_id in zip(good, ids, strict=True):
        assert torch.equal(ended[row_id], run(guided(Elementwise()), [row])[0])


def test_a_step_that_fails_once_for_all_goes_on_row_by_row_and_loses_none():
    denoiser, faults = guided(Elementwise()), iter([False, True, False, False, False])

    class Failing:
        schedule, settings = denoiser.schedule, denoiser.settings

        def __call__(self, x_t, level, condition):
            if len(x_t) > 1 and next(faults, False):
                raise RuntimeError("out of memory")
            return denoiser(x_t, level, condition)

    engine, rows = StepEngine(Failing(), SHAPE), mixed_rows(4)
    ids = [engine.submit(row) for row in rows]
    ended, steps = {}, max(row.remaining for row in rows)
    for _ in range(steps):
        ended |= {outcome.row_id: outcome.x0 for outcome in engine.tick()}
    assert len(engine) == 0, "a step was made twice"
    for row, row_id in zip(rows, ids, strict=True):
        assert torch.equal(ended[row_id], run(guided(Elementwise()), [row])[0])


def test_a_cancelled_row_is_gone_before_the_next_step(engine):
    first, second = (engine.submit(row) for row in mixed_rows(2))
    engine.tick()
    assert engine.cancel(first) and not engine.cancel(first)
    assert engine.state(first) is None
    assert set(drain(engine)) == {second}


def test_a_long_row_does_not_hold_up_short_ones():
    engine = StepEngine(guided(Elementwise()), SHAPE, max_rows=2)
    long = [
        Trajectory.start(ddim(SCHEDULE, spacing.trailing(SCHEDULE, 100)), None, seed=i, shape=SHAPE) for i in (1, 2)
    ]
    short = Trajectory.start(ddim(SCHEDULE, spacing.trailing(SCHEDULE, 5)), None, seed=3, shape=SHAPE)
    for row in long:
        engine.submit(row)
    engine.tick()
    row_id, ticks = engine.submit(short), 0
    while engine.state(row_id) is not None:
        engine.tick()
        ticks += 1
    assert ticks <= 8, "three rows in two places: five steps take at most eight turns"
    assert len(engine) == 2


def test_round_robin_is_fair():
    turns = RoundRobin(2)
    for row_id in range(3):
        turns.admit(row_id)
    served = [row_id for _ in range(9) for row_id in turns.turn()]
    assert [served.count(row_id) for row_id in range(3)] == [6, 6, 6]


def test_submit_refuses_what_cannot_run(engine):
    plan = ddim(SCHEDULE, spacing.trailing(SCHEDULE, 4))
    with pytest.raises(InvalidShape, match=r"\(3, 8, 8\)"):
        engine.submit(Trajectory.start(plan, None, seed=0, shape=(3, 8, 8)))
    unknown = Condition.null(1).with_settings(clasifier_scale=1.0)
    with pytest.raises(InvalidGuidance, match="clasifier_scale"):
        engine.submit(Trajectory.start(plan, unknown, seed=0, shape=SHAPE))
    with pytest.raises(NonFinite):
        engine.submit(Trajectory.start_from(plan, None, torch.full(SHAPE, math.nan), 0, seed=0))
    done = Trajectory(plan, plan.num_steps, torch.zeros(SHAPE), 0, Condition.null(1))
    with pytest.raises(InvalidPlan, match="finished"):
        engine.submit(done)
    with pytest.raises(InvalidShape, match="max_rows"):
        StepEngine(engine.denoiser, SHAPE, max_rows=0)
    assert len(engine) == 0


def test_an_idle_engine_ticks_to_nothing(engine):
    assert engine.tick() == []


def test_nothing_is_left_behind():
    engine = StepEngine(guided(Elementwise()), SHAPE)

    def round_of_rows() -> int:
        for row in mixed_rows(16):
            engine.submit(row)
        drain(engine)
        gc.collect()
        return sum(1 for thing in gc.get_objects() if isinstance(thing, torch.Tensor))

    first = round_of_rows()
    assert max(round_of_rows() for _ in range(3)) <= first
    engine.check()


def test_buckets_pad_the_network_and_change_no_row():
    network = Elementwise()
    padded = NetworkDenoiser(network, SCHEDULE, "v", buckets=(1, 2, 4, 8))
    plain = NetworkDenoiser(Elementwise(), SCHEDULE, "v")
    plan = ddim(SCHEDULE, spacing.trailing(SCHEDULE, 3))
    condition = Condition.of(label=list(range(11)))
    arguments = {"seeds": list(range(11)), "shape": SHAPE, "dtype": F64}
    assert torch.equal(sample(padded, plan, condition, **arguments), sample(plain, plan, condition, **arguments))
    assert set(network.rows_seen) == {8, 4}, "eleven rows are cut into 8 and 3, and 3 is padded to 4"


def test_guidance_costs_exactly_the_evaluations_that_the_rows_need():
    network = Elementwise()
    engine = StepEngine(guided(network), SHAPE)
    plan = ddim(SCHEDULE, spacing.trailing(SCHEDULE, 2))
    asked = [{}, {"guidance_scale": 0.0}, {"guidance_scale": 2.0}, {"classifier_scale": 1.0}, {"clip_scale": 1.0}]
    for i, settings in enumerate(asked):
        condition = Condition.of(label=[1]).with_settings(**settings)
        engine.submit(Trajectory.start(plan, condition, seed=i, shape=SHAPE, dtype=F64))
    engine.tick()
    assert sorted(network.rows_seen) == [1, 5], "clean CLIP's row alone with gradient; four others and one negative"
    drain(engine)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_64_staggered_rows_equal_their_solo_runs_with_a_transformer(dtype, limit):
    """With the DiT, captions of several lengths, and batches of every size: equal to rounding."""
    generator = torch.Generator().manual_seed(0)
    network = DiT(DiTConfig((3, 4, 4), patch=2, width=16, depth=2, num_heads=2, token_dim=6, num_classes=5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    network = network.to(dtype).eval().requires_grad_(False)
    denoiser = Thresholding(ClassifierFreeGuidance(NetworkDenoiser(network, SCHEDULE, "v")), clip_x0=1.0)
    rows = []
    for i in range(64):
        plan = [ddim, ddpm, dpm_solver][i % 3](SCHEDULE, spacing.trailing(SCHEDULE, 2 + i % 7))
        tokens = torch.randn(1, 1 + i % 4, 6, generator=generator, dtype=torch.float64).to(dtype)
        condition = Condition.of(tokens=tokens, label=[i % 5]).with_settings(guidance_scale=1.0 + (i % 4))
        rows.append(Trajectory.start(plan, condition, seed=i, shape=SHAPE, dtype=dtype))
    engine, ids, ended = StepEngine(denoiser, SHAPE, max_rows=24), [], {}
    for i, row in enumerate(rows):
        ids.append(engine.submit(row))
        if i % 3 == 0:
            ended |= {outcome.row_id: outcome.x0 for outcome in engine.tick()}
    ended |= drain(engine)
    alone = torch.stack([run(denoiser, [row])[0] for row in rows])
    together = torch.stack([ended[row_id] for row_id in ids])
    assert float((together - alone).abs().max()) <= limit
    assert float((together - alone.roll(1, dims=0)).abs().max()) > 0.1
