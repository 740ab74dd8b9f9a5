"""Trajectories: convergence on the oracle at the published orders, distributions, inversion and the rest."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from diffusion_core import noise, spacing
from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.errors import InvalidCondition, InvalidGuidance, InvalidPlan, InvalidSeed, InvalidShape
from diffusion_core.oracle import GaussianMixture, OracleDenoiser, energy_distance
from diffusion_core.row import Trajectory
from diffusion_core.sampler import ddim, ddpm, dpm_solver, estimate_x0_variance
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import image_to_image, inpaint, interpolate, invert, run, sample

F64 = torch.float64


def sampled(oracle, plan, num_rows=16, condition=None):
    return sample(oracle, plan, condition, seeds=range(num_rows), shape=(12,), dtype=F64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("make", "rate"), [(ddim, 1.8), (dpm_solver, 3.2)])
def test_order_of_convergence(oracle, make, rate):
    """Error against the exact endpoint of the ODE: 100 -> 200 steps divides it by > 1.8 (DDIM), > 3.2 (2M)."""
    linear = OracleDenoiser(oracle.mixture, NoiseSchedule.linear())
    latents = noise.normal(list(range(16)), noise.INITIAL, 0, (12,), dtype=F64)
    exact = oracle.mixture.ode_map(latents, float(linear.schedule.alpha_bar[-1]))
    errors = [
        float(
            (sampled(linear, make(linear.schedule, spacing.trailing(linear.schedule, n))) - exact)
            .square()
            .mean()
            .sqrt()
        )
        for n in (100, 200)
    ]
    assert errors[0] / errors[1] > rate


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "limit"), [("ddpm-200", 1.2e-2), ("ddim-50", 1.2e-2), ("2m-20", 1.5e-2)])
def test_distribution_against_the_truth(oracle, name, limit):
    """Limits: what 1,000 points of an exact sampler stay under; data a fifth too wide does not."""
    kind, num_steps = name.split("-")
    make = {"ddpm": ddpm, "ddim": ddim, "2m": dpm_solver}[kind]
    found = sampled(oracle, make(oracle.schedule, spacing.trailing(oracle.schedule, int(num_steps))), 1000)
    truth = oracle.mixture.sample(4000, seed=5)
    assert energy_distance(found, truth) < limit
    assert energy_distance(found * 1.2, truth) > limit


@pytest.mark.usefixtures("unchecked")
def test_optimal_variance_mends_respaced_ddpm():
    """Respaced DDPM-50 is under-dispersed for narrow data; the posterior-covariance variance is not."""
    narrow = GaussianMixture(
        weights=torch.ones(1, dtype=F64),
        means=torch.zeros(1, 12, dtype=F64),
        deviations=torch.tensor([0.05], dtype=F64),
        classes=torch.tensor([0]),
    )
    oracle = OracleDenoiser(narrow, NoiseSchedule.cosine())
    levels = spacing.trailing(oracle.schedule, 50)
    found = estimate_x0_variance(oracle, levels, narrow.sample(2000, seed=1))
    small = sampled(oracle, ddpm(oracle.schedule, levels), 200).var() + found[-1]
    optimal = sampled(oracle, ddpm(oracle.schedule, levels, "optimal", found), 200).var() + found[-1]
    # The last step returns E[x0 | x_t], so Var[x0 | x_t] at the last noisy level is added before comparing.
    assert float(small) / 0.05**2 < 0.92
    assert 0.94 < float(optimal) / 0.05**2 < 1.06


@pytest.mark.usefixtures("unchecked")
def test_estimated_x0_variance_is_the_posterior_variance():
    mixture = GaussianMixture(
        weights=torch.ones(1, dtype=F64),
        means=torch.zeros(1, 12, dtype=F64),
        deviations=torch.tensor([0.5], dtype=F64),
        classes=torch.tensor([0]),
    )
    oracle = OracleDenoiser(mixture, NoiseSchedule.linear())
    levels = spacing.trailing(oracle.schedule, 10)
    found = torch.tensor(estimate_x0_variance(oracle, levels, mixture.sample(20_000, seed=1)), dtype=F64)
    alpha_bar = oracle.schedule.at(levels[:-1])
    torch.testing.assert_close(found, 0.25 * (1 - alpha_bar) / (alpha_bar * 0.25 + 1 - alpha_bar), rtol=0.03, atol=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.usefixtures("unchecked")
def test_optimal_variance_wants_one_number_per_step(oracle):
    levels = spacing.trailing(oracle.schedule, 10)
    with pytest.raises(InvalidPlan, match="10 numbers"):
        ddpm(oracle.schedule, levels, "optimal", [0.1] * 9)
    with pytest.raises(InvalidPlan, match="estimate_x0_variance"):
        ddpm(oracle.schedule, levels, "optimal")
    with pytest.raises(InvalidPlan, match="posterior, beta"):
        ddpm(oracle.schedule, levels, "biggest")


@pytest.mark.usefixtures("unchecked")
def test_inversion_round_trip(oracle):
    """Plain inversion errs by the step size; fixed-point refinements make it exact where they contract."""
    plan, condition = ddim(oracle.schedule, spacing.trailing(oracle.schedule, 50)), Condition.of(label=[1] * 8)
    x0 = oracle.mixture.sample(8, seed=3, label=1)
    errors = []
    for refinements in (0, 3, 10):
        latent = invert(oracle, plan, x0, condition, refinements=refinements)
        rows = [Trajectory.start_at(plan, condition.rows(slice(0, 1)), row, seed=0) for row in latent]
        errors.append(float((run(oracle, rows) - x0).abs().max()))
    assert errors[0] > 1e-3, "negative control: the plain inversion is not exact at 50 steps"
    assert errors[1] < errors[0] / 20 and errors[2] < 1e-6


@pytest.mark.usefixtures("unchecked")
def test_image_to_image_keeps_more_at_less_strength(oracle):
    plan = ddim(oracle.schedule, spacing.trailing(oracle.schedule, 50))
    x0 = oracle.mixture.sample(64, seed=3)
    moved = [
        float((image_to_image(oracle, plan, None, x0, strength=s, seeds=range(64)) - x0).norm(dim=1).mean())
        for s in (0.1, 0.5, 1.0)
    ]
    assert moved[0] < moved[1] < moved[2]
    with pytest.raises(InvalidPlan, match="strength"):
        image_to_image(oracle, plan, None, x0, strength=0.0, seeds=range(64))
    with pytest.raises(InvalidShape, match="64 rows"):
        image_to_image(oracle, plan, None, x0, strength=0.5, seeds=range(3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("strength", "steps"), [(1e-6, 1), (0.009, 1), (0.03, 2), (0.5, 25), (1.0, 50)])
def test_strength_is_a_share_of_the_steps_and_one_step_at_least(oracle, strength, steps):
    plan = ddim(oracle.schedule, spacing.trailing(oracle.schedule, 50))
    x0, made = oracle.mixture.sample(2, seed=3), []
    found = image_to_image(
        oracle, plan, None, x0, strength=strength, seeds=range(2), on_step=lambda number, _: made.append(number)
    )
    assert made == list(range(steps))
    assert float((found - x0).abs().max()) > 1e-6, "even one step moves the data"


@pytest.mark.usefixtures("unchecked")
def test_inpainting_keeps_what_is_given_and_fits_the_rest(oracle):
    plan = ddim(oracle.schedule, spacing.trailing(oracle.schedule, 50), eta=1.0)
    mixture = oracle.mixture
    x0 = mixture.means[torch.arange(64) % 4]
    mask = torch.zeros(64, 12)
    mask[:, :8] = 1
    found = inpaint(oracle, plan, None, x0, mask, seeds=range(64))
    torch.testing.assert_close(found[:, :8], x0[:, :8], rtol=0, atol=1e-12)
    nearest = torch.cdist(found[:, 8:], mixture.means[:, 8:]).argmin(dim=1)
    assert float((nearest == torch.arange(64) % 4).double().mean()) > 0.9
    free = sampled(oracle, plan, 64)
    nearest = torch.cdist(free[:, 8:], mixture.means[:, 8:]).argmin(dim=1)
    assert float((nearest == torch.arange(64) % 4).double().mean()) < 0.6, "negative control: without what is given"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.usefixtures("unchecked")
def test_interpolation_is_on_the_sphere():
    a, b = (torch.randn(5, 3, 4, dtype=F64) for _ in range(2))
    torch.testing.assert_close(interpolate(a, b, 0.0), a)
    torch.testing.assert_close(interpolate(a, b, 1.0), b)
    unit_a, unit_b = (x / x.flatten(1).norm(dim=1)[:, None, None] for x in (a, b))
    middle = interpolate(unit_a, unit_b, 0.3).flatten(1)
    torch.testing.assert_close(middle.norm(dim=1), torch.ones(5, dtype=F64))
    torch.testing.assert_close(interpolate(a, a, 0.5), a)
    with pytest.raises(InvalidShape):
        interpolate(a, b[:2], 0.5)


def test_a_row_does_not_depend_on_its_neighbours(oracle):
    plans = [ddim(oracle.schedule, spacing.trailing(oracle.schedule, 10 + i), eta=i / 5) for i in range(4)]
    condition = Condition.of(label=[0, 1, 2, 0])
    together = sample(oracle, plans, condition, seeds=[1, 2, 3, 2**64 - 1], shape=(12,), dtype=F64)
    for i, seed in enumerate([1, 2, 3, 2**64 - 1]):
        alone = sample(oracle, plans[i], condition.rows(slice(i, i + 1)), seeds=[seed], shape=(12,), dtype=F64)
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-12)
    assert not torch.allclose(together[0], together[3])


def test_steps_report_the_predicted_x0(oracle):
    seen = []
    plan = ddim(oracle.schedule, spacing.trailing(oracle.schedule, 5))
    final = sample(oracle, plan, seeds=[1, 2], shape=(12,), dtype=F64, on_step=lambda i, x0: seen.append((i, x0)))
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1][1], final)
    steps = [float((after - before).norm()) for (_, before), (_, after) in itertools.pairwise(seen)]
    assert all(size > 0 for size in steps)


def test_data_of_any_shape():
    """Vectors, sequences and videos take the same road."""
    schedule = NoiseSchedule.cosine()
    denoiser = NetworkDenoiser(lambda x, level, condition: torch.tanh(x), schedule, "v")
    plan = ddpm(schedule, spacing.trailing(schedule, 4))
    for shape in ((7,), (2, 9), (3, 8, 8), (3, 5, 4, 4)):
        assert sample(denoiser, plan, seeds=[1, 2], shape=shape).shape == (2, *shape)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(oracle):
    plan = ddim(oracle.schedule, spacing.trailing(oracle.schedule, 5))
    with pytest.raises(InvalidPlan, match="2 plans for 3 seeds"):
        sample(oracle, [plan, plan], seeds=[1, 2, 3], shape=(12,))
    with pytest.raises(InvalidCondition, match="wanted 1 or 3"):
        sample(oracle, plan, Condition.of(label=[0, 1]), seeds=[1, 2, 3], shape=(12,))
    with pytest.raises(InvalidGuidance, match="guidance_scale"):
        sample(oracle, plan, Condition.of(label=[0]).with_settings(guidance_scale=2.0), seeds=[1], shape=(12,))
    for seed in (-1, 2**64, 1.5):
        with pytest.raises(InvalidSeed):
            sample(oracle, plan, seeds=[seed], shape=(12,))
    with pytest.raises(InvalidShape, match="at least one seed"):
        sample(oracle, plan, seeds=[], shape=(12,))


def test_initial_noise_is_the_published_stream():
    row = Trajectory.start(ddim(NoiseSchedule.cosine(), [1000, 0]), None, seed=7, shape=(3, 4), dtype=F64)
    assert torch.equal(row.x, noise.normal(7, noise.INITIAL, 0, (3, 4), None, F64))
    assert math.isclose(float(row.x.mean()), 0.0, abs_tol=1.0) and row.remaining == 1
