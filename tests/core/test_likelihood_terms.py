"""Each term of the bound against integrals, plain formulas and diffusers' published variances."""

from __future__ import annotations

import math

import diffusers
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core import noise
from diffusion_core.likelihood import ReverseProcess, decoder_log_prob, prior_term, vlb_terms
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule
from tests.core.eight_bit import eight_bit, plain_bin

F64 = torch.float64
LINEAR = NoiseSchedule.linear()


def plain_kl(mean_q: float, var_q: float, mean_p: float, var_p: float) -> float:
    return 0.5 * (math.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned_range", "optimal"])
@given(st.integers(2, 12), st.data())
def test_a_term_is_the_divergence_of_two_gaussians(variance, last, data):
    """Against posterior means and variances computed one by one, at any pair of neighbours in any list."""
    schedule = LINEAR
    levels = sorted(data.draw(st.sets(st.integers(1, 1000), min_size=last, max_size=last)), reverse=True)
    place = data.draw(st.integers(0, last - 2))
    x0_variance = [0.01] * last if variance == "optimal" else None
    process = ReverseProcess.of(schedule, [*levels, 0], variance, x0_variance)
    x_t, x0, guess = (noise.normal(data.draw(st.integers(0, 99)), 51, k, (1, 3), dtype=F64) for k in range(3))
    t, s = torch.tensor([levels[place]]), torch.tensor([levels[place + 1]])
    a_t, a_s = float(schedule.at(t)), float(schedule.at(s))
    fraction = torch.tensor([[0.0, 0.3, 1.0]], dtype=F64)
    eps = (x_t - math.sqrt(a_t) * guess) / math.sqrt(1 - a_t)
    prediction = Prediction(x_t, guess, eps, schedule.at(t), variance_fraction=fraction)
    true_mean, true_variance = schedule.posterior(x0, x_t, t, s)
    model_mean, _ = schedule.posterior(guess, x_t, t, s)
    small, large = float(true_variance), 1 - a_t / a_s
    weight = math.sqrt(a_s) * large / (1 - a_t)
    wanted = 0.0
    for d, f in enumerate(fraction[0].tolist()):
        var_p = {
            "posterior": small,
            "beta": large,
            "learned_range": large**f * small ** (1 - f),
            "optimal": small + weight**2 * 0.01,
        }[variance]
        wanted += plain_kl(float(true_mean[0, d]), small, float(model_mean[0, d]), var_p)
    found = vlb_terms(process, prediction, x0, t, "gaussian")
    assert float(found) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_divergence_of_a_right_prediction_is_zero():
    schedule = LINEAR
    x0, eps, level = eight_bit(4), noise.normal(range(4), 1, 0, (3, 4), dtype=F64), torch.tensor([2, 10, 500, 1000])
    x_t = schedule.q_sample(x0, level, eps)
    right = Prediction.from_x0(x_t, x0, schedule.at(level))
    assert float(vlb_terms(ReverseProcess.of(schedule), right, x0, level).abs().max()) < 1e-12


def test_variances_against_diffusers_and_the_first_step_takes_the_next_entry():
    schedule, peer = LINEAR, diffusers.DDPMScheduler()
    peer.alphas_cumprod, peer.betas, peer.one = schedule.alpha_bar[1:], schedule.betas, torch.ones((), dtype=F64)
    levels = range(1000, 1, -1)
    posterior = torch.stack([peer._get_variance(level - 1) for level in levels])
    found = ReverseProcess.of(schedule)
    torch.testing.assert_close(found.log_low[:-1].exp(), posterior, rtol=1e-10, atol=0)
    assert torch.equal(found.log_low, found.log_true) and found.log_high is None
    assert float(found.log_low[-1]) == float(found.log_low[-2]), "not log 0, nor log 1e-20"
    learned = ReverseProcess.of(schedule, variance="learned_range")
    assert learned.log_high is not None
    torch.testing.assert_close(learned.log_high.exp(), schedule.betas.flip(0), rtol=1e-10, atol=0)


def test_the_only_step_takes_beta():
    schedule = LINEAR
    assert float(ReverseProcess.of(schedule, [700, 0]).log_low.exp()) == pytest.approx(
        1 - float(schedule.alpha_bar[700])
    )


@given(st.integers(0, 255), st.floats(-1.2, 1.2), st.floats(1e-2, 2.0))
def test_discretized_decoder_is_the_probability_of_a_bin(value, mean, deviation):
    x = value / 127.5 - 1
    if abs(x - mean) / deviation > 30:
        return  # scipy's difference has no digits left there
    row = (torch.tensor([[v]], dtype=F64) for v in (x, mean, 2 * math.log(deviation)))
    assert float(decoder_log_prob(*row, "discretized")) == pytest.approx(
        plain_bin(x, mean, deviation), rel=1e-6, abs=1e-9
    )


@given(st.floats(-1.5, 1.5), st.floats(-9.0, 2.0))
def test_bins_add_up_to_one(mean, log_variance):
    bins = (torch.arange(256, dtype=F64) / 127.5 - 1)[:, None]
    found = decoder_log_prob(bins, torch.full_like(bins, mean), torch.full_like(bins, log_variance), "discretized")
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-10)


def test_far_bins_keep_their_digits_and_their_gradient():
    """A hundred deviations away the difference of two distribution functions is 0; the logarithm is not."""
    x = torch.tensor([[-1.0, 0.0, 1.0, 0.5]], dtype=F64)
    mean = torch.tensor([[1.0, 1.0, -1.0, -0.5]], dtype=F64, requires_grad=True)
    found = decoder_log_prob(x, mean, torch.full((1, 4), 2 * math.log(0.01), dtype=F64), "discretized")
    z = torch.tensor([200 - 1 / 2.55, 100 - 1 / 2.55, 200 - 1 / 2.55, 100 - 1 / 2.55], dtype=F64)
    wanted = -z.square() / 2 - (z * math.sqrt(2 * math.pi)).log()
    torch.testing.assert_close(found[0].detach(), wanted, rtol=1e-5, atol=0)
    gradient = torch.autograd.grad(found.sum(), mean)[0]
    assert bool(torch.isfinite(gradient).all()) and bool((gradient.abs() > 1e3).all())


def test_the_tanh_approximation_is_the_published_one_and_is_off():
    """Differs from the exact decoder by up to 0.05 nats a dimension: only for comparing with published numbers."""
    x = (torch.arange(256, dtype=F64) / 127.5 - 1)[:, None]
    mean, log_variance = x + 0.02, torch.full_like(x, 2 * math.log(0.01))
    found = decoder_log_prob(x, mean, log_variance, "discretized_tanh")

    def cdf(z: float) -> float:
        return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    for row in (0, 100, 255):
        centre = float(x[row])
        high = 1.0 if centre > 0.999 else cdf((centre + 1 / 255 - float(mean[row])) / 0.01)
        low = 0.0 if centre < -0.999 else cdf((centre - 1 / 255 - float(mean[row])) / 0.01)
        assert float(found[row]) == pytest.approx(math.log(max(high - low, 1e-12)), abs=1e-12)
    exact = decoder_log_prob(x, mean, log_variance, "discretized")
    assert 1e-3 < float((found - exact).abs().max()) < 0.1


def test_gaussian_decoder_is_a_density():
    x, mean, log_variance = (noise.normal(range(3), 52, k, (5,), dtype=F64) for k in range(3))
    found = decoder_log_prob(x, mean, log_variance, "gaussian")
    wanted = scipy.stats.norm.logpdf(x, mean, (log_variance / 2).exp())
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)


def test_prior_term_is_a_divergence():
    schedule, x0 = LINEAR, eight_bit(3)
    for level in (1000, 300, 1):
        a = float(schedule.alpha_bar[level])
        wanted = [sum(plain_kl(math.sqrt(a) * v, 1 - a, 0.0, 1.0) for v in row.flatten().tolist()) for row in x0]
        assert prior_term(schedule, x0, level).tolist() == pytest.approx(wanted, rel=1e-9)
    assert prior_term(LINEAR.with_zero_terminal_snr(), x0, 1000).tolist() == [0.0] * 3
