"""The bound against entropies and exact likelihoods; its terms together and one by one."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_core import noise, spacing
from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidLevels, InvalidPlan, InvalidPrediction, InvalidShape, NonFinite
from diffusion_core.likelihood import (
    ElboTerms,
    ReverseProcess,
    bits_per_dim,
    elbo_terms,
    prior_term,
    vlb_terms,
)
from diffusion_core.oracle import GaussianMixture, OracleDenoiser
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule
from tests.core.eight_bit import eight_bit, plain_bin

F64 = torch.float64
SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "zero terminal": NoiseSchedule.linear().with_zero_terminal_snr(),
}


def gaussian(deviation: float = 0.5, mean: float = 0.7, name: str = "linear") -> OracleDenoiser:
    return OracleDenoiser(GaussianMixture.gaussian(torch.tensor([mean], dtype=F64), deviation), SCHEDULES[name])


def posterior_variance(schedule: NoiseSchedule, levels, deviation: float) -> list[float]:
    a = schedule.at(levels[:-1])
    return (deviation**2 * (1 - a) / (a * deviation**2 + 1 - a)).tolist()


def exact_bound(oracle: OracleDenoiser, levels, variance: str, x0_variance=None) -> float:
    """The expected bound of one Gaussian on a line, without chance.

    All terms are quadratic, and four points (mean +- deviation, +- 1) have the second moments of (x0, eps).
    """
    schedule, made, count = oracle.schedule, oracle.mixture, len(levels) - 1
    process = ReverseProcess.of(schedule, levels, variance, x0_variance)
    x0 = made.means + made.deviations * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    eps = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64).repeat(count, 1)
    rows, level = x0.repeat(count, 1), torch.tensor(levels[:-1]).repeat_interleave(4)
    prediction = oracle(schedule.q_sample(rows, level, eps), level, None)
    terms = vlb_terms(process, prediction, rows, level, "gaussian")
    return float(prior_term(schedule, x0, levels[0]).mean() + terms.sum() / 4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("deviation", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("num_steps", [1, 3, 50, 1000])
def test_with_the_optimal_variance_the_bound_of_a_gaussian_is_its_entropy(name, deviation, num_steps):
    """What is left is the prior's KL(q(x_T) || N(0, I)), known in closed form."""
    oracle = gaussian(deviation, name=name)
    levels = spacing.trailing(oracle.schedule, num_steps)
    total = exact_bound(oracle, levels, "optimal", posterior_variance(oracle.schedule, levels, deviation))
    a = float(oracle.schedule.alpha_bar[levels[0]])
    variance = a * deviation**2 + 1 - a
    prior = 0.5 * (variance + a * 0.7**2 - 1 - math.log(variance))
    assert total == pytest.approx(oracle.mixture.entropy + prior, abs=1e-11)
    assert total == pytest.approx(oracle.mixture.entropy, abs=1e-5)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_another_variance_costs_more(variance):
    """Negative control of the test above."""
    oracle = gaussian()
    for num_steps in (20, 50):
        levels = spacing.trailing(oracle.schedule, num_steps)
        assert exact_bound(oracle, levels, variance) > oracle.mixture.entropy + 0.02


def test_drawn_terms_have_the_entropy_as_their_mean():
    oracle = OracleDenoiser(GaussianMixture.gaussian(torch.zeros(4, dtype=F64), 0.5), SCHEDULES["cosine"])
    levels = spacing.trailing(oracle.schedule, 20)
    found = elbo_terms(
        oracle,
        oracle.mixture.sample(4000, seed=2),
        levels=levels,
        variance="optimal",
        x0_variance=posterior_variance(oracle.schedule, levels, 0.5),
        decoder="gaussian",
    )
    bits = bits_per_dim(found)
    wanted = oracle.mixture.entropy / (4 * math.log(2))
    assert abs(bits.mean - wanted) < 4 * bits.standard_error < 0.1


def test_a_bound_on_a_mixture_is_above_its_exact_likelihood():
    classes = torch.tensor([0, 1])
    made = GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=F64),
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64),
        torch.tensor([0.4, 0.3], dtype=F64),
        classes,
    )
    oracle, x0 = OracleDenoiser(made, SCHEDULES["cosine"]), made.sample(400, seed=1)
    for condition, label in ((None, None), (Condition.of(label=[1] * 400), torch.ones(400, dtype=torch.int64))):
        exact = -made.log_prob(x0, label=label)
        found = elbo_terms(
            oracle, x0, condition, levels=spacing.trailing(oracle.schedule, 100), decoder="gaussian"
        ).total
        gap = found - exact
        assert float(gap.mean()) > 3 * float(gap.std()) / 20


def learned(x, level, _condition=None):
    """A stand-in for a network with a learned variance: a smooth guess and its fraction."""
    alpha_bar = SCHEDULES["linear"].at(level)
    found = Prediction.from_v(x, torch.tanh(x), alpha_bar)
    return Prediction(x, found.x0, found.eps, alpha_bar, variance_fraction=torch.sigmoid(x))


class Learned:
    schedule, settings = SCHEDULES["linear"], {}

    def __call__(self, x_t, level, condition):
        return learned(x_t, level)


@pytest.mark.parametrize("levels", [None, (1000, 600, 77, 5, 0), (9, 0)])
@pytest.mark.parametrize(("variance", "decoder"), [("posterior", "discretized"), ("learned_range", "gaussian")])
def test_all_terms_are_the_terms_one_by_one(levels, variance, decoder):
    x0, seeds = eight_bit(3), [5, 2**64 - 1, 7]
    found = elbo_terms(Learned(), x0, seeds=seeds, levels=levels, variance=variance, decoder=decoder)
    assert found.levels == (tuple(range(1000, -1, -1)) if levels is None else levels)
    assert (found.L_T.shape, found.L_t.shape, found.L_0.shape) == ((3,), (3, len(found.levels) - 2), (3,))
    assert found.num_dims == 12
    process = ReverseProcess.of(Learned.schedule, levels, variance)
    for place in {0, 1, 2, len(found.levels) - 2} & set(range(len(found.levels) - 1)):
        level = torch.full((3,), found.levels[place])
        eps = noise.normal(seeds, noise.LIKELIHOOD, level, (3, 4), dtype=F64)
        terms = vlb_terms(process, learned(Learned.schedule.q_sample(x0, level, eps), level), x0, level, decoder)
        last = place == len(found.levels) - 2
        torch.testing.assert_close(found.L_0 if last else found.L_t[:, place], terms, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.total, found.L_T + found.L_t.sum(dim=1) + found.L_0)


def test_levels_share_calls_but_never_noise():
    sizes = []

    class Counting(Learned):
        def __call__(self, x_t, level, condition):
            sizes.append(len(x_t))
            return learned(x_t, level)

    x0, levels = eight_bit(3), (1000, 800, 600, 400, 200, 1, 0)
    batched = elbo_terms(Counting(), x0, levels=levels, rows_per_call=7)
    assert sizes == [6, 6, 6]
    for rows_per_call in (1, 3, 1000):
        other = elbo_terms(Counting(), x0, levels=levels, rows_per_call=rows_per_call)
        torch.testing.assert_close(other.total, batched.total, rtol=1e-12, atol=1e-12)
    assert max(sizes) == 18
    # Rows of equal data still draw their own noise, and so does another seed.
    same = elbo_terms(Counting(), x0[:1].repeat(2, 1, 1), levels=levels)
    assert float(same.total[0]) != float(same.total[1])
    assert not torch.equal(elbo_terms(Counting(), x0, levels=levels, seeds=1).total, batched.total)


def test_a_row_depends_on_itself_and_its_seed_alone():
    x0, levels = eight_bit(3), (1000, 500, 1, 0)
    together = elbo_terms(Learned(), x0, seeds=[3, 4, 5], levels=levels)
    alone = elbo_terms(Learned(), x0[1:2], seeds=[4], levels=levels)
    torch.testing.assert_close(alone.total, together.total[1:2], rtol=1e-12, atol=1e-12)


def test_conditions_follow_their_rows():
    made = GaussianMixture(
        torch.ones(2, dtype=F64),
        torch.tensor([[-2.0], [2.0]], dtype=F64),
        torch.full((2,), 0.3, dtype=F64),
        torch.arange(2),
    )
    oracle, levels = OracleDenoiser(made, SCHEDULES["cosine"]), (1000, 700, 300, 50, 0)
    x0 = torch.tensor([[-2.0], [2.0]], dtype=F64)
    right = elbo_terms(oracle, x0, Condition.of(label=[0, 1]), levels=levels, decoder="gaussian").total
    wrong = elbo_terms(oracle, x0, Condition.of(label=[1, 0]), levels=levels, decoder="gaussian").total
    assert bool((wrong > right + 5).all())


def test_single_precision_data_gives_the_same_bound():
    x0 = eight_bit(2, dtype=torch.float32)
    single, double = (elbo_terms(Learned(), x, levels=(1000, 500, 1, 0)) for x in (x0, eight_bit(2)))
    assert single.total.dtype == F64
    torch.testing.assert_close(single.total, double.total, rtol=1e-4, atol=0)


def terms_of(totals: list[float]) -> ElboTerms:
    """Terms with these totals in bits per dimension, of rows of two numbers."""
    nats = torch.tensor(totals, dtype=F64) * 2 * math.log(2)
    return ElboTerms(nats * 0.25, (nats * 0.5)[:, None], nats * 0.25, (2, 1, 0), 2)


def test_bits_per_dim_and_its_standard_error():
    found = bits_per_dim(terms_of([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == pytest.approx(3.0, rel=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(14 / 3) / 2, rel=1e-12)
    assert bits_per_dim([terms_of([1.0, 2.0]), terms_of([3.0, 6.0])]) == pytest.approx(found, rel=1e-12)
    single = bits_per_dim(terms_of([4.0]))
    assert single.mean == pytest.approx(4.0) and math.isnan(single.standard_error)
    with pytest.raises(InvalidShape, match="no rows"):
        bits_per_dim([])


def test_bytes_cost_what_their_gaussian_model_says():
    """The exact denoiser of N(0, 1/3), its optimal variance and the discretized decoder: that Gaussian's own bins."""
    schedule, shape = SCHEDULES["linear"], (40,)
    made = GaussianMixture.gaussian(torch.zeros(shape, dtype=F64), math.sqrt(1 / 3))
    levels = spacing.trailing(schedule, 30)
    found = elbo_terms(
        OracleDenoiser(made, schedule),
        eight_bit(1000, shape),
        levels=levels,
        variance="optimal",
        x0_variance=posterior_variance(schedule, levels, math.sqrt(1 / 3)),
    )
    wanted = -sum(plain_bin(u / 127.5 - 1, 0.0, math.sqrt(1 / 3)) for u in range(256)) / 256 / math.log(2)
    assert 8.0 < wanted < 8.5, "uniform bytes have 8 bits"
    bits = bits_per_dim(found)
    assert abs(bits.mean - wanted) < 4 * bits.standard_error < 0.05


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        (torch.full((1, 2), 0.001), "8-bit data"),
        (torch.full((1, 2), 1.0 + 2 / 255), "8-bit data"),
    ],
)
def test_other_than_8_bit_data_is_refused_by_the_discretized_decoder(x0, message):
    with pytest.raises(InvalidShape, match=message):
        elbo_terms(Learned(), x0, levels=(5, 0))
    assert bool(torch.isfinite(elbo_terms(Learned(), x0, levels=(5, 0), decoder="gaussian").total).all())


def test_what_is_not_finite_is_named_by_row():
    x0 = eight_bit(3)
    x0[1] = math.nan
    with pytest.raises(NonFinite, match="the data holds NaN") as caught:
        elbo_terms(Learned(), x0, levels=(5, 0))
    assert caught.value.rows == (1,)

    class Broken(Learned):
        def __call__(self, x_t, level, condition):
            found = learned(x_t, level)
            x0 = found.x0.clone()
            x0[2] = math.nan
            return Prediction(x_t, x0, found.eps, found.alpha_bar)

    with pytest.raises(NonFinite, match=r"rows \[2\] is not finite at level 700") as caught:
        elbo_terms(Broken(), eight_bit(3), levels=(700, 5, 0), rows_per_call=3)
    assert caught.value.rows == (2,)


def test_bad_questions_are_refused():
    x0 = eight_bit(2)
    with pytest.raises(InvalidLevels, match="final 0"):
        elbo_terms(Learned(), x0, levels=(5, 3))
    with pytest.raises(InvalidPlan, match="x0_variance"):
        elbo_terms(Learned(), x0, levels=(5, 0), variance="optimal")
    with pytest.raises(InvalidShape, match="seeds"):
        elbo_terms(Learned(), x0, levels=(5, 0), seeds=[1, 2, 3])
    process = ReverseProcess.of(SCHEDULES["linear"], (9, 5, 0))
    prediction = learned(x0, torch.tensor([9, 7]))
    with pytest.raises(InvalidLevels, match=r"found levels \[7\]"):
        vlb_terms(process, prediction, x0, torch.tensor([9, 7]))
    ranged = ReverseProcess.of(SCHEDULES["linear"], (9, 5, 0), "learned_range")
    plain = Prediction.from_v(x0, x0, SCHEDULES["linear"].at([9, 5]))
    with pytest.raises(InvalidPrediction, match="learned variance"):
        vlb_terms(ranged, plain, x0, torch.tensor([9, 5]))
