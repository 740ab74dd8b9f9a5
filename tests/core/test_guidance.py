"""Guidance wrappers: identities on the oracle, counted evaluations, and what each option does by its formula."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_core import spacing
from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser, check_settings
from diffusion_core.errors import InvalidGuidance
from diffusion_core.guidance import AutoGuidance, ClassifierFreeGuidance, GradientGuidance, Thresholding
from diffusion_core.oracle import GaussianMixture, OracleDenoiser
from diffusion_core.sampler import ddim, ddpm, dpm_solver
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.trajectory import sample

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("unchecked")


class Counting:
    """Counts the rows that a denoiser is asked about."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.calls = denoiser, []

    @property
    def schedule(self):
        return self.denoiser.schedule

    @property
    def settings(self):
        return self.denoiser.settings

    def __call__(self, x_t, level, condition):
        self.calls.append(len(x_t))
        return self.denoiser(x_t, level, condition)


@pytest.fixture
def rows():
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=F64)
    return x, torch.tensor([1, 50, 300, 600, 900, 990]), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_classifier_guidance_equals_classifier_free_guidance_on_the_oracle(oracle, rows, scale):
    """grad log p(y | x_t) = (eps - eps_y) / sigma, so scale s on the unconditional model is w = s."""
    x, level, label = rows
    condition = Condition.of(label=label)
    free = ClassifierFreeGuidance(oracle)(x, level, condition.with_settings(guidance_scale=scale))
    steered = GradientGuidance(oracle, oracle.log_density)
    classifier = steered(x, level, condition.hidden().with_settings(classifier_scale=scale))
    torch.testing.assert_close(classifier.eps, free.eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(classifier.x0, free.x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [ddim, ddpm, dpm_solver])
def test_and_so_do_whole_samples(oracle, make):
    plan = make(oracle.schedule, spacing.trailing(oracle.schedule, 30))
    condition = Condition.of(label=[0, 1, 2, 0])
    arguments = {"seeds": [1, 2, 3, 4], "shape": (12,), "dtype": F64}
    free = sample(ClassifierFreeGuidance(oracle), plan, condition.with_settings(guidance_scale=1.7), **arguments)
    asked = condition.hidden().with_settings(classifier_scale=1.7)
    steered = sample(GradientGuidance(oracle, oracle.log_density), plan, asked, **arguments)
    torch.testing.assert_close(steered, free, rtol=0, atol=1e-8)
    other = condition.with_settings(guidance_scale=1.6)
    assert not torch.allclose(sample(ClassifierFreeGuidance(oracle), plan, other, **arguments), free, rtol=0, atol=1e-4)


def test_scale_one_is_the_plain_conditional_per_row(oracle, rows):
    x, level, label = rows
    condition = Condition.of(label=label)
    counting = Counting(oracle)
    scales = torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0, 0.0])
    mixed = ClassifierFreeGuidance(counting)(x, level, condition.with_settings(guidance_scale=scales))
    assert counting.calls == [7], "six rows, and one negative for the row with w = 3, in one call"
    plain, null = oracle(x, level, condition), oracle(x, level, condition.hidden())
    for row, reference in ((0, plain), (2, plain), (4, plain), (3, null), (5, null)):
        assert torch.equal(mixed.eps[row], reference.eps[row])
    torch.testing.assert_close(mixed.eps[1], null.eps[1] + 3 * (plain.eps[1] - null.eps[1]), rtol=1e-12, atol=1e-12)


def test_negative_condition_beside_none(oracle, rows):
    x, level, label = (part[:2] for part in rows)
    asked = Condition.of(label=label).with_settings(guidance_scale=2.0)
    negative = Condition.cat([Condition.of(label=[2]), Condition.null(1)])
    with_negative = Condition(asked.present, label=asked.label, negative=negative, settings=asked.settings)
    mixed = ClassifierFreeGuidance(oracle)(x, level, with_negative)
    away = oracle(x, level, Condition.of(label=[2, 2]))
    wanted, null = oracle(x, level, asked), oracle(x, level, asked.hidden())
    torch.testing.assert_close(mixed.x0[0], away.x0[0] + 2 * (wanted.x0[0] - away.x0[0]))
    torch.testing.assert_close(mixed.x0[1], null.x0[1] + 2 * (wanted.x0[1] - null.x0[1]))


def test_interval_of_sigma(oracle, rows):
    x, level, label = rows
    sigma = oracle.schedule.sigma(level)
    asked = Condition.of(label=label).with_settings(
        guidance_scale=2.0, guidance_sigma_min=float(sigma[2]), guidance_sigma_max=float(sigma[4])
    )
    counting = Counting(oracle)
    found = ClassifierFreeGuidance(counting)(x, level, asked)
    assert counting.calls == [8]
    plain = oracle(x, level, asked)
    same = [torch.equal(found.x0[i], plain.x0[i]) for i in range(6)]
    assert same == [True, True, False, False, True, True]


def test_rescale_brings_the_deviation_back(oracle, rows):
    x, level, label = rows
    asked = Condition.of(label=label).with_settings(guidance_scale=5.0)
    plain = oracle(x, level, asked)
    full = ClassifierFreeGuidance(oracle)(x, level, asked.with_settings(guidance_rescale=1.0))
    free = ClassifierFreeGuidance(oracle)(x, level, asked)
    torch.testing.assert_close(full.x0.std(dim=1), plain.x0.std(dim=1))
    half = ClassifierFreeGuidance(oracle)(x, level, asked.with_settings(guidance_rescale=0.5))
    torch.testing.assert_close(half.x0, (full.x0 + free.x0) / 2)
    check_consistent(half)


def test_adaptive_projection(oracle, rows):
    x, level, label = rows
    asked = Condition.of(label=label).with_settings(guidance_scale=4.0, apg_eta=0.0, apg_norm=0.05)
    found = ClassifierFreeGuidance(oracle)(x, level, asked)
    wanted = oracle(x, level, asked)
    update = found.x0 - wanted.x0
    assert bool((update.norm(dim=1) <= 3 * 0.05 + 1e-12).all())
    torch.testing.assert_close((update * wanted.x0).sum(dim=1), torch.zeros(6, dtype=F64), rtol=0, atol=1e-12)
    neutral = asked.with_settings(apg_eta=1.0, apg_norm=1e9)
    plain = ClassifierFreeGuidance(oracle)(x, level, Condition.of(label=label).with_settings(guidance_scale=4.0))
    torch.testing.assert_close(ClassifierFreeGuidance(oracle)(x, level, neutral).x0, plain.x0)


def test_cfg_plus_plus_renoises_with_the_unguided_noise(oracle, rows):
    x, level, label = rows
    asked = Condition.of(label=label).with_settings(guidance_scale=0.6, cfg_plus_plus=[1, 0, 1, 0, 1, 0])
    found = Thresholding(ClassifierFreeGuidance(oracle), clip_x0=1.0)(x, level, asked)
    null = oracle(x, level, asked.hidden())
    for row in range(6):
        assert torch.equal(found.eps[row], null.eps[row]) == (row % 2 == 0)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_cfg_plus_plus_renoises_where_nothing_is_extrapolated(oracle, rows, scale):
    """x0 is that of the null or of the plain model, and eps is unguided, also where x0 is clipped."""
    x, level, label = rows
    asked = Condition.of(label=label).with_settings(guidance_scale=scale, cfg_plus_plus=1.0)
    null, plain = oracle(x, level, asked.hidden()), oracle(x, level, asked)
    assert not torch.allclose(null.eps, plain.eps)
    guided = ClassifierFreeGuidance(oracle)
    found = guided(x, level, asked)
    torch.testing.assert_close(found.x0, plain.x0 if scale else null.x0, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.eps, null.eps)
    clipped = Thresholding(guided, clip_x0=0.1)(x, level, asked)
    assert not torch.allclose(clipped.x0, found.x0)
    assert torch.equal(clipped.eps, null.eps)


def test_autoguidance(oracle, rows):
    x, level, label = rows
    weak = OracleDenoiser(
        GaussianMixture(
            weights=oracle.mixture.weights,
            means=oracle.mixture.means,
            deviations=oracle.mixture.deviations * 2,
            classes=oracle.mixture.classes,
        ),
        oracle.schedule,
    )
    counting = Counting(weak)
    asked = Condition.of(label=label).with_settings(autoguidance_scale=[1, 1, 1, 2, 2, 2])
    found = AutoGuidance(oracle, counting)(x, level, asked)
    assert counting.calls == [3]
    strong, bad = oracle(x, level, asked), weak(x, level, asked)
    assert torch.equal(found.x0[:3], strong.x0[:3])
    torch.testing.assert_close(found.x0[3:], (2 * strong.x0 - bad.x0)[3:])
    with pytest.raises(InvalidGuidance, match="schedule"):
        AutoGuidance(oracle, OracleDenoiser(oracle.mixture, NoiseSchedule.linear()))


def test_clean_guidance_through_x0_is_the_gradient_of_the_composition(oracle, rows):
    x, level, label = rows
    target = torch.linspace(-1, 1, 12, dtype=F64)

    def log_density(x0, level, condition):
        return -((x0 - target) ** 2).sum(dim=1)

    counting = Counting(oracle)
    asked = Condition.of(label=label).with_settings(clip_scale=[0, 0.1, 0, 0.1, 0.1, 0])
    found = GradientGuidance(counting, log_density, name="clip", at="x0")(x, level, asked)
    assert sorted(counting.calls) == [3, 3], "each row is evaluated once"
    plain = oracle(x, level, asked)
    sigma = (1 - oracle.schedule.at(level)).sqrt()
    step, row = 1e-6, 3
    numeric = torch.zeros(12, dtype=F64)
    one = slice(row, row + 1)
    for axis in range(12):
        bump = torch.zeros(1, 12, dtype=F64)
        bump[0, axis] = step
        up, down = (
            log_density(oracle(x[one] + sign * bump, level[one], asked.rows(one)).x0, None, None) for sign in (1, -1)
        )
        numeric[axis] = (up - down)[0] / (2 * step)
    torch.testing.assert_close(found.eps[row], plain.eps[row] - 0.1 * sigma[row] * numeric, rtol=1e-6, atol=1e-7)
    assert torch.equal(found.eps[0], plain.eps[0]) and not found.x0.requires_grad
    check_consistent(found)


def test_wrappers_nest_in_either_order(oracle, rows):
    """Score shifts add, so classifier guidance inside or outside of classifier-free guidance is the same."""
    x, level, label = rows
    asked = Condition.of(label=label).with_settings(guidance_scale=2.0, classifier_scale=0.5)
    outside = GradientGuidance(ClassifierFreeGuidance(oracle), oracle.log_density)(x, level, asked)
    inside = ClassifierFreeGuidance(GradientGuidance(oracle, oracle.log_density))(x, level, asked)
    torch.testing.assert_close(inside.eps, outside.eps, rtol=1e-9, atol=1e-9)


def test_static_and_dynamic_thresholding(oracle, rows):
    x, level, label = rows
    asked = Condition.of(label=label).with_settings(
        clip_x0=[0.5, 0, 0, 0, 0, 0], dynamic_threshold=[0, 0.8, 0, 0, 0, 0]
    )
    plain = oracle(x, level, asked)
    found = Thresholding(oracle)(x * 3, level, asked)
    raw = oracle(x * 3, level, asked)
    assert float(found.x0[0].abs().max()) <= 0.5
    assert torch.equal(found.x0[2:], raw.x0[2:]) and torch.equal(found.eps[2:], raw.eps[2:])
    bound = max(float(raw.x0[1].abs().sort().values[round(0.8 * 11)]), 1.0)
    torch.testing.assert_close(found.x0[1], raw.x0[1].clamp(-bound, bound) / bound)
    check_consistent(found)
    assert plain.x0.shape == found.x0.shape
    with pytest.raises(InvalidGuidance, match="dynamic_threshold"):
        Thresholding(oracle)(x, level, asked.with_settings(dynamic_threshold=1.5))


def test_a_row_that_asks_for_missing_guidance_is_refused(oracle):
    asked = Condition.of(label=[0, 1]).with_settings(classifier_scale=[math.nan, 2.0])
    with pytest.raises(InvalidGuidance, match=r"rows \[1\] ask for classifier_scale"):
        check_settings(ClassifierFreeGuidance(oracle), asked)
    check_settings(GradientGuidance(oracle, oracle.log_density), asked)
    with pytest.raises(InvalidGuidance, match=r"not finite in rows \[1\]"):
        ClassifierFreeGuidance(oracle)(
            torch.zeros(2, 12, dtype=F64), torch.tensor([5, 5]), asked.with_settings(guidance_scale=[1.0, math.inf])
        )


def test_zero_terminal_snr_keeps_guided_rows_finite():
    schedule = NoiseSchedule.linear().with_zero_terminal_snr()
    denoiser = NetworkDenoiser(lambda x, level, condition: torch.tanh(x), schedule, "v")

    def log_density(x, level, condition):
        return -(x**2).flatten(1).sum(dim=1)

    asked = Condition.of(label=[0, 1]).with_settings(guidance_scale=3.0, classifier_scale=1.0)
    wrapped = GradientGuidance(ClassifierFreeGuidance(denoiser), log_density)
    found = wrapped(torch.randn(2, 5, dtype=F64), torch.tensor([1000, 1000]), asked)
    assert bool(torch.isfinite(found.x0).all() and torch.isfinite(found.eps).all())


@pytest.mark.parametrize(("sigma_max", "scale"), [(math.inf, 3.0), (1e9, 1.0)])
def test_guidance_without_an_upper_end_reaches_zero_terminal_snr(sigma_max, scale):
    """sigma is infinite there, so x0 = x0_n + w (x0_c - x0_n) only where the interval has no end."""
    schedule = NoiseSchedule.linear().with_zero_terminal_snr()
    denoiser = NetworkDenoiser(lambda x, level, seen: torch.tanh(x) * (1 + seen.present[:, None]), schedule, "x0")
    x, level = torch.randn(2, 5, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.tensor([1000, 1000])
    asked = Condition.of(label=[0, 1]).with_settings(guidance_scale=3.0, guidance_sigma_max=sigma_max)
    found = ClassifierFreeGuidance(denoiser)(x, level, asked)
    torch.testing.assert_close(found.x0, torch.tanh(x) * (1 + scale), rtol=1e-12, atol=1e-12)


def check_consistent(prediction) -> None:
    """x_t = alpha x0 + sigma eps."""
    alpha, sigma = prediction.alpha_bar.sqrt()[:, None], (1 - prediction.alpha_bar).sqrt()[:, None]
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, prediction.x_t, rtol=1e-9, atol=1e-9)
