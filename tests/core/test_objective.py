"""Training losses against their formulas, draws as functions of (seed, sample number), importance sampling unbiased."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.errors import InvalidPrediction, InvalidShape
from diffusion_core.likelihood import ReverseProcess, vlb_terms
from diffusion_core.objective import (
    LossHistory,
    TrainingDraws,
    level_weight,
    simple_loss,
    training_draws,
    training_loss,
)
from diffusion_core.oracle import GaussianMixture, OracleDenoiser
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule

F64 = torch.float64
SCHEDULE = NoiseSchedule.linear()
KINDS = ("x0", "eps", "v", "u")


class Scaled(torch.nn.Module):
    """A network of two numbers: `gain x`, and a variance fraction."""

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.3, dtype=F64))
        self.raw = torch.nn.Parameter(torch.tensor(0.1, dtype=F64))
        self.learned = learned
        self.seen: list[Condition | None] = []

    def forward(self, x, level, condition):
        self.seen.append(condition)
        first = self.gain * x
        return torch.cat([first, self.raw * torch.ones_like(x)], dim=1) if self.learned else first


def batch(num_rows: int = 6) -> tuple[torch.Tensor, TrainingDraws]:
    x0 = (noise.uniform(range(num_rows), 60, 0, (2, 3), dtype=F64) * 256).floor() / 127.5 - 1
    draws = training_draws(4, range(num_rows), (2, 3), 1000, dropout=0.4, dtype=F64)
    return x0, draws._replace(level=torch.tensor([1, 2, 100, 500, 900, 1000])[:num_rows])


@pytest.mark.parametrize("kind", KINDS)
def test_simple_loss_is_the_mean_squared_error_of_what_is_predicted(kind):
    x0, draws = batch()
    x_t = SCHEDULE.q_sample(x0, draws.level, draws.eps)
    network = Scaled()
    found = training_loss(NetworkDenoiser(network, SCHEDULE, kind), x0, draws, parameterization=kind)
    a = SCHEDULE.at(draws.level).view(-1, 1, 1)
    v = a.sqrt() * draws.eps - (1 - a).sqrt() * x0
    target = {"x0": x0, "eps": draws.eps, "v": v, "u": draws.eps - x0}[kind]
    torch.testing.assert_close(found, (0.3 * x_t - target).square().mean(dim=(1, 2)), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_network(kind):
    x0, draws = batch()
    network = Scaled()
    training_loss(NetworkDenoiser(network, SCHEDULE, kind), x0, draws, parameterization=kind).mean().backward()
    x_t = SCHEDULE.q_sample(x0, draws.level, draws.eps)
    target = getattr(Prediction(x_t, x0, draws.eps, SCHEDULE.at(draws.level)), kind)
    wanted = (2 * (0.3 * x_t - target) * x_t).mean()
    assert float(network.gain.grad) == pytest.approx(float(wanted), rel=1e-8)


@given(st.floats(1e-3, 1e3), st.sampled_from(["min_snr", "snr_plus_one", "p2"]), st.floats(0.5, 10.0))
def test_one_weighting_means_the_same_on_every_parameterization(snr, weighting, gamma):
    """With the same x_t, squared errors of x0, eps, v and u are as 1 : snr : snr + 1 : (sqrt(snr) + 1)^2."""
    schedule = NoiseSchedule(torch.tensor([1.0, snr / (1 + snr)], dtype=F64))
    level = torch.tensor([1])
    on = {kind: float(level_weight(schedule, level, kind, weighting, gamma)) for kind in KINDS}
    assert on["x0"] == pytest.approx(on["eps"] * snr, rel=1e-9)
    assert on["x0"] == pytest.approx(on["v"] * (snr + 1), rel=1e-9)
    assert on["x0"] == pytest.approx(on["u"] * (snr**0.5 + 1) ** 2, rel=1e-9)
    truth = {"min_snr": min(snr, gamma), "snr_plus_one": min(snr + 1, gamma), "p2": snr / (1 + snr) ** gamma}[weighting]
    assert on["x0"] == pytest.approx(truth, rel=1e-9)


def test_published_weights():
    """min-SNR: eps min(snr, g) / snr, x0 min(snr, g), v min(snr, g) / (snr + 1), g = 5; P2: 1 / (1 + snr) on eps."""
    level = torch.arange(1, 1001)
    snr = SCHEDULE.snr(level)
    for kind, divisor in (("eps", snr), ("x0", torch.ones_like(snr)), ("v", snr + 1)):
        torch.testing.assert_close(level_weight(SCHEDULE, level, kind, "min_snr"), snr.clamp(max=5) / divisor)
        assert torch.equal(level_weight(SCHEDULE, level, kind, "simple"), torch.ones_like(snr))
    torch.testing.assert_close(level_weight(SCHEDULE, level, "eps", "p2"), 1 / (1 + snr))


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "snr_plus_one", "p2"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_finite_at_zero_terminal_snr(kind, weighting):
    weight = level_weight(SCHEDULE.with_zero_terminal_snr(), torch.tensor([1, 1000]), kind, weighting)
    assert bool(torch.isfinite(weight).all()) and bool((weight >= 0).all())


def test_the_weighted_loss_is_the_weight_times_the_loss():
    x0, draws = batch()
    denoiser = NetworkDenoiser(Scaled(), SCHEDULE, "v")
    plain, weighted = (
        training_loss(denoiser, x0, draws, parameterization="v", weighting=w) for w in ("simple", "min_snr")
    )
    torch.testing.assert_close(weighted, plain * level_weight(SCHEDULE, draws.level, "v", "min_snr"))
    assert not torch.allclose(weighted, plain)


def test_dropped_rows_hide_their_condition():
    x0, draws = batch()
    drop = torch.tensor([True, False, True, False, False, True])
    network = Scaled()
    training_loss(
        NetworkDenoiser(network, SCHEDULE, "v"),
        x0,
        draws._replace(drop=drop),
        Condition.of(label=list(range(6))),
        parameterization="v",
    )
    seen = network.seen[0]
    assert seen is not None and seen.present.tolist() == (~drop).tolist()
    assert seen.label is not None and seen.label.tolist() == list(range(6))


def test_the_exact_denoiser_has_the_least_loss():
    """Truth: E[x0 | x_t] minimises the squared error, and what is left is the posterior variance."""
    oracle = OracleDenoiser(GaussianMixture.gaussian(torch.zeros(4, dtype=F64), 0.5), SCHEDULE)
    x0 = oracle.mixture.sample(20_000, seed=0)
    draws = TrainingDraws(
        torch.full((20_000,), 400),
        noise.normal(range(20_000), 61, 0, (4,), dtype=F64),
        torch.zeros(20_000, dtype=torch.bool),
    )
    loss = training_loss(oracle, x0, draws, parameterization="x0")
    a = float(SCHEDULE.alpha_bar[400])
    assert float(loss.mean()) == pytest.approx(0.25 * (1 - a) / (a * 0.25 + 1 - a), rel=0.02)


@pytest.mark.parametrize("variance", ["posterior", "learned_range"])
def test_vlb_is_the_term_of_the_bound_in_bits_per_dimension(variance):
    x0, draws = batch()
    process = ReverseProcess.of(SCHEDULE, None, variance)
    denoiser = NetworkDenoiser(Scaled(learned=True), SCHEDULE, "eps", learned_variance=True)
    found = training_loss(denoiser, x0, draws, parameterization="eps", objective="vlb", process=process)
    prediction = denoiser(SCHEDULE.q_sample(x0, draws.level, draws.eps), draws.level, None)
    wanted = 1000 * vlb_terms(process, prediction, x0, draws.level) / (6 * math.log(2))
    torch.testing.assert_close(found, wanted)
    if variance == "learned_range":
        torch.testing.assert_close(
            training_loss(denoiser, x0, draws, parameterization="eps", objective="vlb"),
            wanted,
            msg="the default process",
        )


def test_hybrid_adds_the_bound_and_trains_only_the_variance_by_it():
    x0, draws = batch()
    arguments = {"parameterization": "eps"}

    def gradients(objective: str, **more: float) -> tuple[torch.Tensor, float, float]:
        network = Scaled(learned=True)
        denoiser = NetworkDenoiser(network, SCHEDULE, "eps", learned_variance=True)
        loss = training_loss(denoiser, x0, draws, objective=objective, **arguments, **more)
        loss.mean().backward()
        gain, raw = (0.0 if p.grad is None else float(p.grad) for p in (network.gain, network.raw))
        return loss.detach(), gain, raw

    simple, vlb, hybrid = gradients("simple"), gradients("vlb"), gradients("hybrid")
    torch.testing.assert_close(hybrid[0], simple[0] + 0.001 * vlb[0])
    assert hybrid[1] == pytest.approx(simple[1], rel=1e-12), "the mean learns from L_simple alone"
    assert hybrid[2] == pytest.approx(0.001 * vlb[2], rel=1e-9) and vlb[2] != 0.0
    assert simple[2] == 0.0 and vlb[1] != 0.0
    heavier = gradients("hybrid", vlb_weight=0.01)
    torch.testing.assert_close(heavier[0], simple[0] + 0.01 * vlb[0])


def test_every_row_is_its_own():
    x0, draws = batch()
    denoiser = NetworkDenoiser(Scaled(learned=True), SCHEDULE, "eps", learned_variance=True)
    together = training_loss(denoiser, x0, draws, parameterization="eps", objective="hybrid")
    for row in range(6):
        one = slice(row, row + 1)
        alone = training_loss(
            denoiser,
            x0[one],
            TrainingDraws(*(part[one] for part in draws)),
            parameterization="eps",
            objective="hybrid",
        )
        torch.testing.assert_close(alone, together[one], rtol=1e-12, atol=0)


def test_single_precision_losses_agree():
    x0, draws = batch()
    network = Scaled(learned=True)
    denoiser = NetworkDenoiser(network, SCHEDULE, "eps", learned_variance=True)
    double = training_loss(denoiser, x0, draws, parameterization="eps", objective="hybrid")
    single = training_loss(
        NetworkDenoiser(network.float(), SCHEDULE, "eps", learned_variance=True),
        x0.float(),
        draws._replace(eps=draws.eps.float()),
        parameterization="eps",
        objective="hybrid",
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def test_draws_depend_on_seed_and_sample_number_alone():
    """So they are the same on any number of workers, in any order, after a resume."""
    together = training_draws(7, range(40), (2, 3), 1000, dropout=0.3)
    for share in (range(0, 40, 2), range(1, 40, 2), [39, 3, 17]):
        part = training_draws(7, list(share), (2, 3), 1000, dropout=0.3)
        for mine, whole in zip(part, together, strict=True):
            assert torch.equal(mine, whole[list(share)])
    other = training_draws(8, range(40), (2, 3), 1000, dropout=0.3)
    assert not torch.equal(other.level, together.level) and not torch.equal(other.eps, together.eps)
    tensor = training_draws(7, torch.arange(40), (2, 3), 1000, dropout=0.3)
    assert torch.equal(tensor.eps, together.eps)


def test_draws_have_their_distributions():
    draws = training_draws(0, range(20_000), (1,), 10, dropout=0.25)
    counts = torch.bincount(draws.level, minlength=11)
    assert counts[0] == 0 and scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
    assert float(draws.drop.double().mean()) == pytest.approx(0.25, abs=0.015)
    assert scipy.stats.kstest(draws.eps.flatten().numpy(), "norm").pvalue > 1e-3
    # Level and dropout are independent of each other.
    table = torch.stack([torch.bincount(draws.level[draws.drop == d], minlength=11)[1:] for d in (False, True)])
    assert scipy.stats.chi2_contingency(table.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("dropout", "wanted"), [(0.0, 0), (1.0, 100)])
def test_dropout_at_its_ends(dropout, wanted):
    assert int(training_draws(0, range(100), (1,), 10, dropout=dropout).drop.sum()) == wanted


@pytest.mark.parametrize("dropout", [-0.1, 1.1, math.nan])
def test_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(InvalidShape, match="wanted a share in"):
        training_draws(0, [1], (1,), 10, dropout=dropout)


def full_history(scale: torch.Tensor, keep: int = 4) -> LossHistory:
    history = LossHistory.empty(len(scale), keep)
    level = torch.arange(1, len(scale) + 1)
    for _ in range(keep):
        history = history.with_losses(level, scale)
    return history


def test_levels_are_uniform_until_every_one_is_known():
    history = LossHistory.empty(5, keep=2)
    for level in (1, 1, 2, 2, 3, 3, 4, 4, 5):
        assert history.probabilities.tolist() == [0.2] * 5
        history = history.with_losses(torch.tensor([level]), torch.tensor([float(level)]))
    assert history.counts.tolist() == [2, 2, 2, 2, 1]
    history = history.with_losses(torch.tensor([5]), torch.tensor([5.0]))
    assert history.probabilities.tolist() != [0.2] * 5


def test_levels_come_by_the_root_of_the_mean_squared_loss():
    scale = torch.tensor([1.0, 3.0, 0.0, 4.0], dtype=F64)
    history = full_history(scale)
    wanted = 0.999 * scale / 8 + 0.001 / 4
    torch.testing.assert_close(history.probabilities, wanted)
    mixed = history.with_losses(torch.tensor([1]), torch.tensor([7.0]))
    size = math.sqrt((3 * 1 + 49) / 4)
    assert float(mixed.probabilities[0]) == pytest.approx(0.999 * size / (size + 7) + 0.001 / 4)


def test_the_oldest_losses_make_room_in_order():
    history = LossHistory.empty(2, keep=3).with_losses(
        torch.tensor([1, 2, 1, 1, 1]), torch.tensor([1.0, 9.0, 2.0, 3.0, 4.0])
    )
    assert history.losses.tolist() == [[2.0, 3.0, 4.0], [0.0, 0.0, 9.0]] and history.counts.tolist() == [3, 1]


def test_importance_sampling_leaves_the_mean_loss_unbiased_and_lowers_its_variance():
    scale = torch.tensor([0.01, 0.02, 0.1, 5.0, 0.3], dtype=F64)
    level, weight = full_history(scale).draw(3, range(20_000))
    loss = weight * scale[level - 1]
    assert float(loss.mean()) == pytest.approx(float(scale.mean()), rel=0.02)
    uniform = scale[training_draws(3, range(20_000), (1,), 5).level - 1]
    assert float(loss.std()) < float(uniform.std()) / 5


def test_importance_sampled_levels_are_data():
    """Two tensors are all its state, and the draw is a function of (history, seed, sample number)."""
    history = full_history(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    twin = LossHistory(history.losses.clone(), history.counts.clone())
    level, weight = history.draw(5, range(30))
    again, weight_again = twin.draw(5, [7, 3])
    assert torch.equal(again, level[[7, 3]]) and torch.equal(weight_again, weight[[7, 3]])
    before = history.losses.clone()
    history.with_losses(torch.tensor([1]), torch.tensor([100.0]))
    assert torch.equal(history.losses, before)
    assert float(replace(history, floor=1.0).probabilities[0]) == pytest.approx(1 / 3)


def test_a_learned_variance_without_one_is_refused():
    x0, draws = batch()
    with pytest.raises(InvalidPrediction, match="learned variance"):
        training_loss(NetworkDenoiser(Scaled(), SCHEDULE, "v"), x0, draws, parameterization="v", objective="hybrid")


def test_simple_loss_of_a_right_prediction_is_zero():
    x0, draws = batch()
    x_t = SCHEDULE.q_sample(x0, draws.level, draws.eps)
    right = Prediction(x_t, x0, draws.eps, SCHEDULE.at(draws.level))
    for kind in KINDS:
        assert simple_loss(right, x0, draws.eps, kind).tolist() == [0.0] * 6
