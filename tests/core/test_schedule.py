"""Schedules against their formulas and diffusers; the forward process and its posterior against Bayes' rule."""

from __future__ import annotations

import json
import math

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core import noise
from diffusion_core.errors import InvalidLevels, InvalidSchedule, InvalidShape
from diffusion_core.schedule import NoiseSchedule

F64 = torch.float64
SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "sigmoid": NoiseSchedule.sigmoid(),
    "flow": NoiseSchedule.flow(),
    "shifted flow": NoiseSchedule.flow(1000, shift=3.0),
    "zero terminal": NoiseSchedule.linear().with_zero_terminal_snr(),
    "short": NoiseSchedule.linear(3),
}
betas_lists = st.lists(st.floats(1e-6, 0.9), min_size=1, max_size=30)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_clean_and_only_adds_noise(name):
    schedule = SCHEDULES[name]
    table = schedule.alpha_bar
    assert table.dtype == F64 and len(table) == schedule.num_levels + 1
    assert float(table[0]) == 1.0 and bool((table.diff() < 0).all()) and 0.0 <= float(table[-1]) < 1.0


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("linear", "linear", {}),
        ("cosine", "squaredcos_cap_v2", {}),
        ("scaled_linear", "scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
        ("sigmoid", "sigmoid", {}),
    ],
)
def test_against_diffusers(name, kind, options):
    """Its tables are float32: they agree to 1e-6 of 1, and its entry t is our level t + 1."""
    peer = diffusers.DDPMScheduler(beta_schedule=kind, **options)
    ours = SCHEDULES[name].alpha_bar[1:]
    torch.testing.assert_close(peer.alphas_cumprod.double(), ours, rtol=0, atol=1e-6)
    torch.testing.assert_close(peer.betas.double(), SCHEDULES[name].betas, rtol=1e-5, atol=2e-7)


def test_flow_against_diffusers():
    """Noise over signal is t / (1 - t) with the scheduler's own shifted t."""
    for name, shift in (("flow", 1.0), ("shifted flow", 3.0)):
        t = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.double().flip(0)
        ours = SCHEDULES[name]
        torch.testing.assert_close(ours.sigma(torch.arange(1, 1000)), t[:-1] / (1 - t[:-1]), rtol=1e-3, atol=0)
        assert float(ours.alpha_bar[-1]) == 0.0 and float(t[-1]) == 1.0


def test_zero_terminal_snr_against_diffusers():
    wanted = torch.cumprod(1.0 - rescale_zero_terminal_snr(SCHEDULES["linear"].betas), dim=0)
    ours = SCHEDULES["zero terminal"].alpha_bar
    torch.testing.assert_close(ours[1:], wanted, rtol=0, atol=1e-12)
    assert float(ours[-1]) == 0.0 and float(ours[1]) == pytest.approx(1 - 1e-4, abs=1e-15)


@pytest.mark.parametrize("level", [1, 2, 500, 1000])
def test_linear_is_a_product_of_its_betas(level):
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(level)]
    assert float(SCHEDULES["linear"].alpha_bar[level]) == pytest.approx(math.prod(1 - b for b in betas), rel=1e-12)


def test_cosine_is_its_formula_but_for_the_cap():
    curve = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    wanted = torch.tensor([value / curve[0] for value in curve], dtype=F64)
    torch.testing.assert_close(SCHEDULES["cosine"].alpha_bar[:1000], wanted[:1000], rtol=0, atol=1e-14)
    assert float(SCHEDULES["cosine"].betas[-1]) == pytest.approx(0.999, rel=1e-12)


@given(betas_lists)
def test_betas_come_back(betas):
    schedule = NoiseSchedule.from_betas(betas)
    torch.testing.assert_close(schedule.betas, torch.tensor(betas, dtype=F64), rtol=0, atol=1e-12)
    assert torch.equal(NoiseSchedule.from_betas(torch.tensor(betas, dtype=F64)).alpha_bar, schedule.alpha_bar)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_survives_its_configuration_exactly(name):
    config = json.loads(json.dumps(SCHEDULES[name].to_config()))
    assert torch.equal(NoiseSchedule.from_config(config).alpha_bar, SCHEDULES[name].alpha_bar)


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_to_noise_in_its_three_units(name):
    schedule = SCHEDULES[name]
    level = torch.arange(1, schedule.num_levels + 1)
    alpha_bar = schedule.at(level)
    assert torch.equal(alpha_bar, schedule.alpha_bar[1:])
    torch.testing.assert_close(schedule.snr(level), alpha_bar / (1 - alpha_bar))
    torch.testing.assert_close(schedule.log_snr(level), alpha_bar.log() - torch.log1p(-alpha_bar))
    torch.testing.assert_close(schedule.sigma(level), ((1 - alpha_bar) / alpha_bar).sqrt())
    clean = torch.tensor([0])
    assert float(schedule.snr(clean)) == math.inf and float(schedule.sigma(clean)) == 0.0


def test_both_ends_of_the_signal_to_noise_ratio():
    last = torch.tensor([1000])
    assert float(SCHEDULES["zero terminal"].snr(last)) == 0.0
    assert float(SCHEDULES["zero terminal"].sigma(last)) == math.inf


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (2, 3, 4, 4)])
def test_forward_process_row_by_row(shape):
    schedule, level = SCHEDULES["linear"], torch.tensor([0, 1, 500, 1000])
    x0, eps = (noise.normal(range(4), 0, index, shape, dtype=F64) for index in (0, 1))
    found = schedule.q_sample(x0, level, eps)
    for row, t in enumerate(level.tolist()):
        a = float(schedule.alpha_bar[t])
        torch.testing.assert_close(found[row], math.sqrt(a) * x0[row] + math.sqrt(1 - a) * eps[row], rtol=0, atol=1e-15)
    assert torch.equal(found[0], x0[0])


def test_one_jump_has_the_moments_of_many_steps():
    """q(x_t | x0) is the chain of q(x_s | x_{s-1}) = N(sqrt(1 - beta) x_{s-1}, beta)."""
    schedule, mean, variance = SCHEDULES["short"], 1.0, 0.0
    for beta in schedule.betas.tolist():
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    one, zero, level = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), torch.tensor([3])
    assert float(schedule.q_sample(one, level, zero)) == pytest.approx(mean, rel=1e-14)
    assert float(schedule.q_sample(zero, level, one)) ** 2 == pytest.approx(variance, rel=1e-14)


@given(betas_lists, st.data())
def test_posterior_is_bayes_rule(betas, data):
    """q(x_s | x_t, x0) is proportional to q(x_t | x_s) q(x_s | x0): precisions add, for any s < t."""
    schedule = NoiseSchedule.from_betas(betas)
    t = data.draw(st.integers(1, len(betas)))
    s = data.draw(st.integers(0, t - 1))
    x0, x_t = (torch.tensor([[data.draw(st.floats(-3, 3))]], dtype=F64) for _ in range(2))
    mean, variance = schedule.posterior(x0, x_t, torch.tensor([t]), torch.tensor([s]))
    a_t, a_s = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
    if s == 0:
        assert float(mean) == pytest.approx(float(x0), abs=1e-12) and float(variance) == 0.0
        return
    ratio = a_t / a_s
    from_data, from_noise = 1 / (1 - a_s), ratio / (1 - ratio)
    wanted = (math.sqrt(a_s) * float(x0) * from_data + float(x_t) / math.sqrt(ratio) * from_noise) / (
        from_data + from_noise
    )
    assert float(mean) == pytest.approx(wanted, rel=1e-7, abs=1e-7)
    assert float(variance) == pytest.approx(1 / (from_data + from_noise), rel=1e-7)


def test_posterior_against_diffusers():
    schedule, peer = SCHEDULES["linear"], diffusers.DDPMScheduler(clip_sample=False, prediction_type="sample")
    peer.alphas_cumprod, peer.alphas, peer.betas = schedule.alpha_bar[1:], 1 - schedule.betas, schedule.betas
    peer.one = torch.ones((), dtype=F64)
    x0, x_t = (noise.normal(1, 0, index, (1, 3, 4), dtype=F64) for index in (0, 1))
    for level in (2, 10, 500, 1000):
        mean, variance = schedule.posterior(x0, x_t, torch.tensor([level]))
        peer_mean = peer.step(x0, level - 1, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
        assert float(variance) == pytest.approx(float(peer._get_variance(level - 1)), rel=1e-12)
        torch.testing.assert_close(mean + variance.sqrt() * z, peer_mean, rtol=0, atol=1e-12)


def test_posterior_of_rows_at_their_own_levels():
    schedule, level = SCHEDULES["cosine"], torch.tensor([1, 7, 1000])
    x0, x_t = (noise.normal(range(3), 0, index, (2, 2), dtype=F64) for index in (0, 1))
    mean, variance = schedule.posterior(x0, x_t, level)
    for row in range(3):
        one = slice(row, row + 1)
        alone = schedule.posterior(x0[one], x_t[one], level[one])
        assert torch.equal(mean[one], alone[0]) and torch.equal(variance[one], alone[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_data_keeps_its_type_and_tables_stay_double(dtype):
    schedule, level = SCHEDULES["linear"], torch.tensor([1, 999])
    x0 = torch.ones(2, 3, dtype=dtype)
    assert schedule.q_sample(x0, level, x0).dtype == dtype
    mean, variance = schedule.posterior(x0, x0, level)
    assert (mean.dtype, variance.dtype, schedule.at(level).dtype) == (dtype, F64, F64)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.tensor([1.0, 0.5]), "wanted float64"),
        (torch.tensor([1.0], dtype=F64), "T >= 1"),
        (torch.tensor([[1.0, 0.5]], dtype=F64), "wanted float64"),
        (torch.tensor([0.99, 0.5], dtype=F64), "start at exactly 1"),
        (torch.tensor([1.0, -0.1], dtype=F64), r"end in \[0, 1\)"),
        (torch.tensor([1.0, math.nan], dtype=F64), "must be finite"),
        (torch.tensor([1.0, 0.5, 0.5], dtype=F64), "does not decrease at level 2"),
        (torch.tensor([1.0, 0.4, 0.5], dtype=F64), "does not decrease at level 2"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_schedule_is_refused(table, message):
    with pytest.raises(InvalidSchedule, match=message):
        NoiseSchedule(table)


@pytest.mark.parametrize("betas", [[], [0.0], [-0.1], [1.1], [0.1, math.nan], [1.0, 0.5]])
def test_bad_betas_are_refused(betas):
    with pytest.raises(InvalidSchedule):
        NoiseSchedule.from_betas(betas)


@pytest.mark.parametrize(
    "make",
    [
        NoiseSchedule.linear,
        NoiseSchedule.cosine,
        NoiseSchedule.scaled_linear,
        NoiseSchedule.sigmoid,
        NoiseSchedule.flow,
    ],
)
def test_a_schedule_without_levels_is_refused(make):
    with pytest.raises(InvalidSchedule, match="num_levels=0"):
        make(0)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_a_shift_that_is_not_positive_is_refused(shift):
    with pytest.raises(InvalidSchedule, match="wanted a positive number"):
        NoiseSchedule.flow(10, shift)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("level", [[-1], [1001], [0.5], [True], torch.tensor([1.0])])
def test_a_level_outside_the_schedule_is_refused(level):
    with pytest.raises(InvalidLevels, match=r"wanted (integers in )?0\.\.1000"):
        SCHEDULES["linear"].at(level)


@pytest.mark.parametrize(("level", "previous"), [([0], None), ([5], [5]), ([5], [6])])
def test_a_posterior_backwards_is_refused(level, previous):
    x = torch.zeros(1, 2)
    with pytest.raises(InvalidLevels, match=r"s < t|wanted 0"):
        SCHEDULES["linear"].posterior(x, x, torch.tensor(level), None if previous is None else torch.tensor(previous))


@pytest.mark.usefixtures("unchecked")
def test_levels_for_other_rows_are_refused():
    with pytest.raises(InvalidShape, match="one entry per row"):
        SCHEDULES["linear"].q_sample(torch.zeros(2, 3), torch.tensor([1, 2, 3]), torch.zeros(2, 3))
