"""The oracle against numerical integration, autograd, Bayes' rule and closed forms: what the other tests stand on."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import scipy.integrate
import torch

from diffusion_core import noise, spacing
from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidCondition, InvalidShape
from diffusion_core.oracle import GaussianMixture, OracleDenoiser, energy_distance
from diffusion_core.oracle.__main__ import convergence, mixture_12d, panels, report
from diffusion_core.sampler import ddim, step
from diffusion_core.schedule import NoiseSchedule

F64 = torch.float64
SCHEDULE = NoiseSchedule.linear()


def mixture(shape: tuple[int, ...] = (3,)) -> GaussianMixture:
    means = noise.normal(range(4), noise.ORACLE, 9, shape, dtype=F64)
    return GaussianMixture(
        weights=torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=F64),
        means=means,
        deviations=torch.tensor([0.3, 0.2, 0.4, 0.25], dtype=F64),
        classes=torch.tensor([0, 0, 1, 2]),
    )


@pytest.fixture
def oracle() -> OracleDenoiser:
    return OracleDenoiser(mixture(), SCHEDULE)


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        noise.normal(range(6), 0, 0, (3,), dtype=F64),
        torch.tensor([1, 50, 300, 600, 900, 1000]),
        torch.arange(6) % 3,
    )


def in_one_dimension(label: int | None) -> tuple[OracleDenoiser, list[tuple[float, float, float]]]:
    """A mixture on a line, and (weight, mean, deviation) of the components that a label sees."""
    weights, means, deviations, classes = [0.5, 0.2, 0.3], [-1.0, 0.3, 1.4], [0.3, 0.5, 0.2], [0, 1, 1]
    table = [torch.tensor(column, dtype=F64) for column in (weights, means, deviations)]
    made = GaussianMixture(table[0], table[1][:, None], table[2], torch.tensor(classes))
    seen = [
        part
        for part, one in zip(zip(weights, means, deviations, strict=True), classes, strict=True)
        if label in (None, one)
    ]
    return OracleDenoiser(made, SCHEDULE), seen


def moments_by_integration(parts: list[tuple[float, float, float]], x_t: float, a: float) -> tuple[float, float, float]:
    """p(x_t), E[x0 | x_t] and Var[x0 | x_t] by adaptive quadrature over x0."""
    total = sum(weight for weight, _, _ in parts)

    def joint(x0: float, power: int) -> float:
        prior = sum(
            w / total * math.exp(-(((x0 - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for w, m, s in parts
        )
        likelihood = math.exp(-((x_t - math.sqrt(a) * x0) ** 2) / (2 * (1 - a))) / math.sqrt(2 * math.pi * (1 - a))
        return x0**power * prior * likelihood

    zeroth, first, second = (
        scipy.integrate.quad(joint, -6, 6, args=(p,), epsabs=0, epsrel=1e-11, limit=400, points=[-1, 0.3, 1.4, x_t])[0]
        for p in range(3)
    )
    return zeroth, first / zeroth, second / zeroth - (first / zeroth) ** 2


@pytest.mark.parametrize("label", [None, 0, 1])
@pytest.mark.parametrize("level", [30, 250, 600, 1000])
@pytest.mark.parametrize("x_t", [-1.2, 0.1, 2.0])
def test_density_mean_and_variance_equal_their_integrals(label, level, x_t):
    oracle, parts = in_one_dimension(label)
    condition = None if label is None else Condition.of(label=[label])
    x, levels, alpha_bar = torch.tensor([[x_t]], dtype=F64), torch.tensor([level]), SCHEDULE.at([level])
    density, mean, variance = moments_by_integration(parts, x_t, float(alpha_bar))
    assert float(oracle.log_prob(x, levels, condition)) == pytest.approx(math.log(density), abs=1e-9)
    assert float(oracle(x, levels, condition).x0) == pytest.approx(mean, abs=1e-9)
    labels = None if label is None else torch.tensor([label])
    assert float(oracle.mixture.x0_variance(x, alpha_bar, labels)) == pytest.approx(variance, abs=1e-9)


def test_prediction_is_consistent_and_is_the_score(oracle, rows):
    x, level, label = rows
    for condition in (None, Condition.of(label=label)):
        found = oracle(x, level, condition)
        alpha, sigma = SCHEDULE.at(level).sqrt()[:, None], (1 - SCHEDULE.at(level)).sqrt()[:, None]
        torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x, rtol=0, atol=1e-13)
        torch.testing.assert_close(-found.eps / sigma, oracle.score(x, level, condition), rtol=1e-10, atol=1e-10)


def test_classifier_is_bayes_rule_and_its_gradient_the_difference_of_scores(oracle, rows):
    """grad log p(y | x_t) = (eps - eps_y) / sigma."""
    x, level, label = rows
    x = x.requires_grad_()
    every = torch.stack([oracle.log_density(x, level, Condition.of(label=[k] * 6)) for k in range(3)])
    torch.testing.assert_close(every.exp().sum(dim=0), torch.ones(6, dtype=F64), rtol=0, atol=1e-13)
    gradient = torch.autograd.grad(every.T[torch.arange(6), label].sum(), x)[0]
    sigma = (1 - SCHEDULE.at(level)).sqrt()[:, None]
    wanted = (oracle(x, level, None).eps - oracle(x, level, Condition.of(label=label)).eps) / sigma
    torch.testing.assert_close(gradient, wanted.detach(), rtol=1e-10, atol=1e-10)


def test_the_classifier_sees_labels_that_the_denoiser_does_not(oracle, rows):
    x, level, label = rows
    hidden = Condition.of(label=label).hidden()
    assert torch.equal(oracle(x, level, hidden).x0, oracle(x, level, None).x0)
    assert torch.equal(oracle.log_density(x, level, hidden), oracle.log_density(x, level, Condition.of(label=label)))


def test_clean_data_predicts_itself(oracle, rows):
    x, _, _ = rows
    found = oracle(x, torch.zeros(6, dtype=torch.int64), None)
    torch.testing.assert_close(found.x0, x, rtol=0, atol=1e-13)
    assert not found.eps.any()
    wanted = oracle.mixture.log_prob(x)
    assert torch.equal(oracle.log_prob(x, torch.zeros(6, dtype=torch.int64)), wanted)


def test_pure_noise_says_nothing_about_x0(rows):
    x, _, _ = rows
    zero = OracleDenoiser(mixture(), SCHEDULE.with_zero_terminal_snr())
    found = zero(x, torch.full((6,), 1000), None)
    torch.testing.assert_close(found.eps, x, rtol=0, atol=1e-14)
    mean = (zero.mixture.weights[:, None] * zero.mixture.means).sum(dim=0)
    torch.testing.assert_close(found.x0, mean.expand(6, 3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (2, 3, 2, 2)])
def test_any_data_shape_and_type(shape):
    oracle = OracleDenoiser(mixture(shape), SCHEDULE)
    x, level = noise.normal(range(3), 0, 0, shape, dtype=F64), torch.tensor([10, 500, 900])
    found = oracle(x, level, None)
    flat = OracleDenoiser(
        GaussianMixture(
            oracle.mixture.weights, oracle.mixture.means.flatten(1), oracle.mixture.deviations, oracle.mixture.classes
        ),
        SCHEDULE,
    )(x.flatten(1), level, None)
    assert torch.equal(found.x0.flatten(1), flat.x0)
    single = oracle(x.float(), level, None)
    assert single.x0.dtype == torch.float32
    torch.testing.assert_close(single.x0.double(), found.x0, rtol=0, atol=1e-5)


def test_each_row_depends_on_itself_alone(oracle, rows):
    x, level, label = rows
    condition = Condition.of(label=label)
    together = oracle(x, level, condition)
    for row in range(6):
        one = slice(row, row + 1)
        alone = oracle(x[one], level[one], condition.rows(one))
        torch.testing.assert_close(alone.x0, together.x0[one], rtol=0, atol=1e-14)


def test_samples_have_the_mixtures_moments():
    made = mixture()
    found = made.sample(40_000, seed=3)
    assert found.dtype == F64 and found.shape == (40_000, 3)
    share = made.weights[:, None]
    mean = (share * made.means).sum(dim=0)
    second = (share * (made.means**2 + made.deviations[:, None] ** 2)).sum(dim=0)
    assert bool(((found.mean(dim=0) - mean).abs() < 4 * found.std(dim=0) / 200).all())
    assert bool(((found.square().mean(dim=0) - second).abs() < 4 * found.square().std(dim=0) / 200).all())
    assert torch.equal(made.sample(10, seed=3), made.sample(10, seed=3))
    assert not torch.equal(made.sample(10, seed=3), made.sample(10, seed=4))


def test_samples_of_a_class_come_from_its_components():
    made = mixture()
    nearest = torch.cdist(made.sample(2000, seed=3, label=0), made.means).argmin(dim=1)
    assert float((nearest < 2).double().mean()) > 0.9
    share = float((nearest == 0).double().mean())
    assert share == pytest.approx(0.4, abs=0.08), "0.2 of 0.5"


def test_entropy_of_one_gaussian_is_its_mean_log_density():
    made = GaussianMixture.gaussian(torch.tensor([0.5, -1.0], dtype=F64), 0.7)
    found = -made.log_prob(made.sample(40_000, seed=0))
    assert float(found.mean()) == pytest.approx(made.entropy, abs=4 * float(found.std()) / 200)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("num_steps", [1, 7, 200])
def test_closed_ddim_map_of_one_gaussian(num_steps):
    made = GaussianMixture.gaussian(torch.tensor([0.5, -1.0], dtype=F64), 0.7)
    levels = spacing.trailing(SCHEDULE, num_steps)
    plan, start = ddim(SCHEDULE, levels), noise.normal(range(5), 0, 0, (2,), dtype=F64)
    x = start
    for index, level in enumerate(levels[:-1]):
        x = step(plan, index, OracleDenoiser(made, SCHEDULE)(x, torch.full((5,), level), None))
    torch.testing.assert_close(made.ddim_map(SCHEDULE, levels, start), x, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("unchecked")
def test_flow_map_of_one_gaussian_is_a_scaling():
    """The probability flow of one Gaussian ends at m + s (x - alpha m) / sqrt(v)."""
    made = GaussianMixture.gaussian(torch.tensor([0.5, -1.0], dtype=F64), 0.7)
    start, a = noise.normal(range(5), 0, 0, (2,), dtype=F64), float(SCHEDULE.alpha_bar[-1])
    wanted = made.means[0] + 0.7 * (start - a**0.5 * made.means[0]) / (a * 0.49 + 1 - a) ** 0.5
    errors = [float((made.ode_map(start, a, num_steps=n) - wanted).abs().max()) for n in (50, 100, 200)]
    assert errors[-1] < 1e-5
    assert all(before / after > 10 for before, after in itertools.pairwise(errors)), "fourth order"


@pytest.mark.usefixtures("unchecked")
def test_samplers_converge_at_their_order():
    """Root mean square error from 100 to 200 steps: DDIM falls by more than 1.8, 2M by more than 3.2."""
    errors = convergence(OracleDenoiser(mixture_12d(), SCHEDULE))
    for name, rate, finest in (("DDIM", 1.8, 0.01), ("DPM-Solver++(2M)", 3.2, 0.001)):
        found = errors[name]
        assert all(after < before for before, after in itertools.pairwise(found))
        assert found[3] / found[4] > rate and found[4] < finest
    assert errors["DDIM"][3] / errors["DDIM"][4] < 2.5, "negative control: a method of first order fails 3.2"
    assert "DDIM" in report(errors, {"truth": 0.0})


def test_energy_distance_tells_distributions_apart():
    made = mixture()
    one, two = (made.sample(1000, seed=seed) for seed in (0, 1))
    assert abs(energy_distance(one, two)) < 5e-3
    assert energy_distance(one, two * 1.2) > 1e-2
    assert energy_distance(one, two + 0.2) > 1e-2


def test_the_picture_shows_what_it_says(monkeypatch):
    oracle = OracleDenoiser(mixture((2,)), NoiseSchedule.linear(50))
    monkeypatch.setattr("diffusion_core.oracle.__main__.trailing", lambda s, n: spacing.trailing(s, min(n, 20)))
    found = panels(oracle, count=60)
    assert list(found)[:3] == ["true", "DDPM, 1000 steps", "DDIM, 50 steps"]
    told = torch.tensor([0] * 60 + [1] * 60 + [2] * 60)
    for title, (points, label) in found.items():
        assert points.shape == (180, 2) and bool(torch.isfinite(points).all()), title
        assert label is None or torch.equal(label, told)
    level = torch.ones(180, dtype=torch.int64)

    def judged(title: str) -> float:
        return float(oracle.log_density(found[title][0], level, Condition.of(label=told)).exp().mean())

    assert judged("DDIM, guided, w = 3") > judged("DDIM, guided, w = 1") > 0.5 > judged("DDIM, 50 steps")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)}, "must be positive"),
        ({"deviations": torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=F64)}, "must be positive"),
        ({"deviations": torch.ones(3, dtype=F64)}, "wanted \\(k, ...\\)"),
        ({"means": torch.zeros(4, dtype=F64)}, "wanted \\(k, ...\\)"),
    ],
)
def test_what_is_no_mixture_is_refused(change, message):
    made = mixture()
    parts = {name: getattr(made, name) for name in ("weights", "means", "deviations", "classes")}
    with pytest.raises(InvalidShape, match=message):
        GaussianMixture(**{**parts, **change})


def test_bad_questions_are_refused(oracle, rows):
    x, level, _ = rows
    with pytest.raises(InvalidCondition, match=r"rows \[1\] ask for a class that is not there.*\[0, 1, 2\]"):
        oracle(x, level, Condition.of(label=[0, 7, 1, 2, 0, 1]))
    with pytest.raises(InvalidCondition, match=r"rows without one: \[2\]"):
        oracle.log_density(x, level, Condition.of(label=[0, 1, -1, 2, 0, 1]))
    with pytest.raises(InvalidCondition, match="rows without one: all"):
        oracle.log_density(x, level, Condition.null(6))
    with pytest.raises(InvalidCondition, match="found class 5"):
        oracle.mixture.sample(3, seed=0, label=5)
    with pytest.raises(InvalidShape, match="this mixture has \\(3,\\)"):
        oracle(torch.zeros(6, 4), level, None)
    for ask in (lambda: oracle.mixture.entropy, lambda: oracle.mixture.ddim_map(SCHEDULE, [1000, 0], x)):
        with pytest.raises(InvalidShape, match="needs one Gaussian, this mixture has 4"):
            ask()


@pytest.mark.slow
def test_the_module_prints_its_tables_and_names_its_picture(tmp_path):
    file = tmp_path / "oracle.png"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "diffusion_core.oracle", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"Picture written to {file}" in done.stdout and file.stat().st_size > 10_000
    assert "DPM-Solver++(2M)" in done.stdout and "DDPM 1000" in done.stdout
