"""Sampler tables against closed forms, then against diffusers."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch

from diffusion_core import spacing
from diffusion_core.errors import InvalidLevels, InvalidPlan
from diffusion_core.prediction import Prediction
from diffusion_core.sampler import SamplerPlan, ddim, ddpm, dpm_solver, step
from diffusion_core.schedule import NoiseSchedule

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("unchecked")
SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "sigmoid": NoiseSchedule.sigmoid(),
    "flow": NoiseSchedule.flow(shift=2.0),
}
PLANS = {
    "ddim": ddim,
    "ddim-0.5": lambda s, levels: ddim(s, levels, eta=0.5),
    "ddim-1": lambda s, levels: ddim(s, levels, eta=1.0),
    "ddpm": ddpm,
    "2m": dpm_solver,
    "2m-sde": lambda s, levels: dpm_solver(s, levels, stochastic=True),
}


def gaussian_prediction(x: torch.Tensor, alpha_bar: float, mean: float, variance: float) -> Prediction:
    """The exact denoiser of data N(mean, variance)."""
    total = alpha_bar * variance + 1.0 - alpha_bar
    x0 = mean + math.sqrt(alpha_bar) * variance * (x - math.sqrt(alpha_bar) * mean) / total
    return Prediction.from_x0(x, x0, torch.full((len(x),), alpha_bar, dtype=F64))


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("place", [spacing.trailing, spacing.leading, spacing.linspace, spacing.quadratic])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 1000])
def test_every_plan_keeps_the_marginals(kind, name, place, num_steps):
    """A + C = sqrt(ab_s) and B^2 + D^2 = 1 - ab_s hold to 1e-12, and the last step is x0."""
    schedule = SCHEDULES[name]
    plan = PLANS[kind](schedule, place(schedule, num_steps))
    after = plan.alpha_bar[1:]
    torch.testing.assert_close(plan.A + plan.C, after.sqrt(), rtol=0, atol=1e-12)
    torch.testing.assert_close(plan.B**2 + plan.D**2, 1 - after, rtol=0, atol=1e-12)
    assert plan.rows[-1][0] == 1.0 and not any(plan.rows[-1][1:])


@pytest.mark.parametrize("kind", ["ddim", "ddim-1", "2m", "2m-sde", "ddpm"])
def test_zero_terminal_snr_stays_finite(kind):
    schedule = NoiseSchedule.linear().with_zero_terminal_snr()
    plan = PLANS[kind](schedule, spacing.trailing(schedule, 10))
    assert all(math.isfinite(value) for row in plan.rows for value in row)


@pytest.mark.parametrize("num_steps", [1, 4, 20])
def test_ddim_on_the_flow_schedule_is_eulers_method_on_the_velocity(num_steps):
    """z = (1 - t) x0 + t eps: the peer steps z by u = eps - x0, the table steps x_t = z / deviation."""
    schedule = NoiseSchedule.flow()
    plan = ddim(schedule, spacing.trailing(schedule, num_steps))
    peer = diffusers.FlowMatchEulerDiscreteScheduler()
    peer.set_timesteps(sigmas=[level / 1000 for level in plan.levels[:-1]])
    ours = theirs = torch.linspace(-2, 2, 9, dtype=F64)
    for index, level in enumerate(plan.levels[:-1]):
        alpha_bar, deviation = float(schedule.alpha_bar[level]), math.hypot(1 - level / 1000, level / 1000)
        ours = step(plan, index, gaussian_prediction(ours, alpha_bar, 0.7, 0.25))
        u = gaussian_prediction(theirs / deviation, alpha_bar, 0.7, 0.25).u
        theirs = peer.step(u, peer.timesteps[index], theirs).prev_sample.double()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert float((ours - 0.7).abs().max()) > 0.1 or num_steps == 1


def test_a_plan_that_breaks_an_invariant_is_refused():
    schedule = NoiseSchedule.cosine()
    good = ddim(schedule, spacing.trailing(schedule, 10))
    for column, rule in (("A", "A \\+ C"), ("B", "B\\^2")):
        columns = {name: getattr(good, name).clone() for name in "ABCD"}
        columns[column][3] += 1e-6
        with pytest.raises(InvalidPlan, match=f"step 3 breaks {rule}"):
            SamplerPlan(good.levels, good.alpha_bar, **columns)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range(eta):
    schedule = NoiseSchedule.cosine()
    with pytest.raises(InvalidPlan, match="eta"):
        ddim(schedule, spacing.trailing(schedule, 10), eta=eta)


@pytest.mark.parametrize("levels", [[10, 20, 0], [10, 10, 0], [20, 10], [0], [], [1001, 0]])
@pytest.mark.parametrize("kind", PLANS)
def test_bad_levels(kind, levels):
    with pytest.raises(InvalidLevels):
        PLANS[kind](NoiseSchedule.cosine(), levels)


@pytest.mark.parametrize("num_steps", [1, 3, 20, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_on_one_gaussian_is_its_closed_form(name, num_steps):
    """x0 = m + F (x_T - sqrt(ab_T) m), F = prod (sqrt(a a') s^2 + sqrt((1-a)(1-a'))) / (a s^2 + 1 - a)."""
    schedule, mean, variance = SCHEDULES[name], 0.7, 0.25
    plan = ddim(schedule, spacing.trailing(schedule, num_steps))
    start = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    x, factor = start, 1.0
    for index in range(num_steps):
        a, after = float(plan.alpha_bar[index]), float(plan.alpha_bar[index + 1])
        x = step(plan, index, gaussian_prediction(x, a, mean, variance))
        factor *= (math.sqrt(a * after) * variance + math.sqrt((1 - a) * (1 - after))) / (a * variance + 1 - a)
    wanted = mean + factor * (start - math.sqrt(float(plan.alpha_bar[0])) * mean)
    torch.testing.assert_close(x, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance_kind", ["posterior", "beta", "optimal"])
def test_ddpm_mean_and_variance_on_one_gaussian(variance_kind):
    """Mean and variance follow an affine recursion; the optimal variance ends at exactly the data's own."""
    schedule, mean, variance, num_steps = NoiseSchedule.linear(), 0.7, 0.25, 50
    levels = spacing.trailing(schedule, num_steps)
    x0_variance = [variance * (1 - float(a)) / (float(a) * variance + 1 - float(a)) for a in schedule.at(levels[:-1])]
    plan = ddpm(schedule, levels, variance_kind, x0_variance if variance_kind == "optimal" else None)
    first = float(plan.alpha_bar[0])
    moments = torch.tensor([[math.sqrt(first) * mean], [math.sqrt(first) * mean + 1.0]], dtype=F64)
    spread = first * variance + 1 - first
    for index in range(num_steps):
        a, z = float(plan.alpha_bar[index]), torch.zeros_like(moments)
        moved = step(plan, index, gaussian_prediction(moments, a, mean, variance), z=z)
        slope = float((moved[1] - moved[0]) / (moments[1] - moments[0]))
        spread = slope**2 * spread + plan.rows[index][3] ** 2
        moments = torch.stack([moved[0], moved[0] + 1.0])
    assert math.isclose(float(moments[0]), mean, abs_tol=1e-9)
    if variance_kind == "optimal":
        after_x0 = float(plan.alpha_bar[-2])
        # The last step returns the posterior mean, so it lacks the variance of x0 given x at the last noisy level.
        lacking = variance * (1 - after_x0) / (after_x0 * variance + 1 - after_x0)
        assert math.isclose(spread + lacking, variance, rel_tol=1e-9)
    else:
        # Negative control: neither fixed variance reproduces the data's own on a respaced list.
        assert abs(spread - variance) > 1e-3


def peer_start(num_rows: int = 4) -> torch.Tensor:
    return torch.randn(num_rows, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)


def peer_eps(x: torch.Tensor, level: int) -> torch.Tensor:
    """A smooth stand-in for a network: any function serves to compare two samplers."""
    return torch.tanh(x * (0.5 + level / 2000)) + 0.1 * torch.sin(3 * x)


def exact_tables(scheduler, schedule: NoiseSchedule):
    """Gives diffusers our float64 tables, so that what differs is the sampler."""
    scheduler.alphas_cumprod = schedule.alpha_bar[1:].clone()
    scheduler.alphas = 1 - schedule.betas
    scheduler.betas = schedule.betas
    scheduler.one = torch.ones((), dtype=F64)
    return scheduler


PEER = {"beta_schedule": "linear", "num_train_timesteps": 1000}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("place", "num_steps"), [("trailing", 10), ("trailing", 50), ("leading", 20), ("leading", 50)])
def test_ddim_against_diffusers(eta, place, num_steps, exact):
    schedule = NoiseSchedule.linear()
    peer = diffusers.DDIMScheduler(**PEER, clip_sample=False, timestep_spacing=place, set_alpha_to_one=True)
    if exact:
        exact_tables(peer, schedule).final_alpha_cumprod = torch.ones((), dtype=F64)
    peer.set_timesteps(num_steps)
    levels = getattr(spacing, place)(schedule, num_steps)
    assert [level - 1 for level in levels[:-1]] == peer.timesteps.tolist()
    plan, generator = ddim(schedule, levels, eta=eta), torch.Generator().manual_seed(1)
    ours = theirs = peer_start()
    for index, level in enumerate(levels[:-1]):
        z = torch.randn(ours.shape, generator=generator, dtype=F64)
        prediction = Prediction.from_eps(ours, peer_eps(ours, level), plan.alpha_bar[index].expand(len(ours)))
        ours = step(plan, index, prediction, z=z)
        theirs = peer.step(peer_eps(theirs, level), level - 1, theirs, eta=eta, variance_noise=z).prev_sample
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=(1e-13 if exact else 1e-6) * scale)


@pytest.mark.parametrize(("ours_name", "theirs_name"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("num_steps", [20, 1000])
def test_ddpm_against_diffusers(ours_name, theirs_name, num_steps):
    schedule = NoiseSchedule.linear()
    peer = diffusers.DDPMScheduler(**PEER, clip_sample=False, variance_type=theirs_name, timestep_spacing="trailing")
    exact_tables(peer, schedule).set_timesteps(num_steps)
    levels = spacing.trailing(schedule, num_steps)
    plan = ddpm(schedule, levels, ours_name)
    ours = theirs = peer_start()
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for index, level in enumerate(levels[:-2]):  # in the last step diffusers adds noise, and we return x0
        z = torch.randn(ours.shape, generator=one, dtype=F64)
        prediction = Prediction.from_eps(ours, peer_eps(ours, level), plan.alpha_bar[index].expand(len(ours)))
        ours = step(plan, index, prediction, z=z)
        theirs = peer.step(peer_eps(theirs, level), level - 1, theirs, generator=two).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


def test_learned_range_against_diffusers():
    schedule, num_steps = NoiseSchedule.linear(), 25
    peer = diffusers.DDPMScheduler(
        **PEER, clip_sample=False, variance_type="learned_range", timestep_spacing="trailing"
    )
    exact_tables(peer, schedule).set_timesteps(num_steps)
    levels = spacing.trailing(schedule, num_steps)
    plan = ddpm(schedule, levels, "learned_range")
    ours = theirs = peer_start()
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for index, level in enumerate(levels[:-2]):  # in the last step diffusers adds noise, and we return x0
        z = torch.randn(ours.shape, generator=one, dtype=F64)
        raw = torch.cos(ours)
        plain = Prediction.from_eps(ours, peer_eps(ours, level), plan.alpha_bar[index].expand(len(ours)))
        prediction = Prediction(plain.x_t, plain.x0, plain.eps, plain.alpha_bar, variance_fraction=(raw + 1) / 2)
        ours = step(plan, index, prediction, z=z)
        output = torch.cat([peer_eps(theirs, level), torch.cos(theirs)], dim=1)
        theirs = peer.step(output, level - 1, theirs, generator=two).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("num_steps", [5, 20, 50])
def test_dpm_solver_against_diffusers(stochastic, num_steps):
    schedule = NoiseSchedule.linear()
    peer = diffusers.DPMSolverMultistepScheduler(
        **PEER,
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    exact_tables(peer, schedule).set_timesteps(num_steps)
    levels = spacing.trailing(schedule, num_steps)
    # It rounds its sigmas to float32 whatever the tables.
    peer.sigmas = schedule.sigma(levels)
    plan, generator = dpm_solver(schedule, levels, stochastic), torch.Generator().manual_seed(1)
    ours = theirs = peer_start()
    x0_previous = torch.zeros_like(ours)
    for index, level in enumerate(levels[:-1]):
        z = torch.randn(ours.shape, generator=generator, dtype=F64)
        prediction = Prediction.from_eps(ours, peer_eps(ours, level), plan.alpha_bar[index].expand(len(ours)))
        ours, x0_previous = step(plan, index, prediction, x0_previous, z), prediction.x0
        noise = z.float() if stochastic else None
        theirs = peer.step(peer_eps(theirs, level), level - 1, theirs, variance_noise=noise).prev_sample.double()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


def test_rows_of_different_plans_step_as_they_would_alone():
    schedule = NoiseSchedule.cosine()
    plans = [make(schedule, spacing.trailing(schedule, 10 + 3 * i)) for i, make in enumerate(PLANS.values())]
    index = [1, 2, 3, 4, 5, 6]
    x, z, before = (torch.randn(6, 5, dtype=F64) for _ in range(3))
    alpha_bar = torch.stack([plan.alpha_bar[place] for plan, place in zip(plans, index, strict=True)])
    prediction = Prediction.from_v(x, torch.sin(x), alpha_bar)
    together = step(plans, index, prediction, before, z)
    for row in range(6):
        one = slice(row, row + 1)
        alone = step(plans[row], index[row], prediction.rows(one), before[one], z[one])
        assert torch.equal(together[one], alone)
    changed = prediction.rows(torch.tensor([0, 1, 2, 3, 4, 4]))
    assert not torch.equal(step(plans, index, changed, before, z)[5], together[5])


def test_a_step_refuses_what_it_lacks():
    schedule = NoiseSchedule.cosine()
    levels, x = spacing.trailing(schedule, 5), torch.randn(2, 3, dtype=F64)
    prediction = Prediction.from_v(x, x, schedule.at([800, 800]))
    with pytest.raises(InvalidPlan, match="x0_previous"):
        step(dpm_solver(schedule, levels), 1, prediction)
    with pytest.raises(InvalidPlan, match="noise"):
        step(ddpm(schedule, levels), 1, prediction)
    with pytest.raises(InvalidPlan, match="learned variance"):
        step(ddpm(schedule, levels, "learned_range"), 1, prediction, z=x)
    with pytest.raises(InvalidPlan, match="row 1 asks for step 5"):
        step(ddim(schedule, levels), [0, 5], prediction)
    with pytest.raises(InvalidPlan, match="for 2 rows"):
        step(ddim(schedule, levels), [0], prediction)


def test_bf16_rows_step_in_float32():
    schedule = NoiseSchedule.cosine()
    plan = ddim(schedule, spacing.trailing(schedule, 5))
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    assert step(plan, 0, Prediction.from_v(x, x, plan.alpha_bar[0].expand(2))).dtype == torch.float32
