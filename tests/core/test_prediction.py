"""x0, eps, v and u convert in every direction, at both ends of the schedule, or are refused."""

from __future__ import annotations

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core import noise
from diffusion_core.errors import InvalidPrediction, InvalidShape
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.types import expand

F64 = torch.float64
KINDS = ("x0", "eps", "v", "u")


def truth(alpha_bar: torch.Tensor, shape: tuple[int, ...] = (3, 2), dtype: torch.dtype = F64) -> Prediction:
    """A prediction that is right: x_t made from its x0 and eps."""
    rows = range(len(alpha_bar))
    x0, eps = (noise.normal(rows, 0, index, shape, dtype=F64) for index in (0, 1))
    alpha, sigma = expand(alpha_bar.sqrt(), x0), expand((1 - alpha_bar).sqrt(), x0)
    return Prediction((alpha * x0 + sigma * eps).to(dtype), x0.to(dtype), eps.to(dtype), alpha_bar)


def assert_same(found: Prediction, wanted: Prediction, tolerance: float) -> None:
    for name in ("x_t", "x0", "eps", "v", "u"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=tolerance)


levels = st.lists(st.floats(1e-4, 1 - 1e-4), min_size=1, max_size=5).map(lambda a: torch.tensor(a, dtype=F64))


@pytest.mark.parametrize("kind", KINDS)
@given(levels, st.sampled_from([(1,), (4,), (3, 2, 2), (2, 3, 2, 2)]))
def test_every_parameterization_says_the_same(kind, alpha_bar, shape):
    wanted = truth(alpha_bar, shape)
    assert_same(Prediction.from_output(kind, wanted.x_t, getattr(wanted, kind), alpha_bar), wanted, 1e-9)


@given(levels)
def test_x_t_is_what_x0_and_eps_make_whatever_was_predicted(alpha_bar):
    """Also of a wrong prediction: the three always fit together."""
    x_t, output = (noise.normal(range(len(alpha_bar)), 1, index, (5,), dtype=F64) for index in (0, 1))
    alpha, sigma = expand(alpha_bar.sqrt(), x_t), expand((1 - alpha_bar).sqrt(), x_t)
    for kind in KINDS:
        found = Prediction.from_output(kind, x_t, output, alpha_bar)
        torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x_t, rtol=0, atol=1e-10)
        torch.testing.assert_close(getattr(found, kind), output, rtol=0, atol=1e-9)


def test_u_is_the_velocity_of_the_straight_path():
    """z = (1 - t) x0 + t eps is x_t times its deviation, and dz/dt = eps - x0."""
    schedule = NoiseSchedule.flow(1000, shift=3.0)
    level = torch.tensor([1, 10, 500, 999, 1000])
    place = level.double() / 1000
    t = 3.0 * place / (1.0 + 2.0 * place)
    wanted = truth(schedule.at(level), (4,))
    z = expand(1 - t, wanted.x0) * wanted.x0 + expand(t, wanted.x0) * wanted.eps
    deviation = ((1 - t) ** 2 + t**2).sqrt()
    torch.testing.assert_close(wanted.x_t, z / expand(deviation, z), rtol=0, atol=1e-14)
    torch.testing.assert_close(wanted.u, wanted.eps - wanted.x0, rtol=0, atol=0)
    found = Prediction.from_u(wanted.x_t, wanted.u, wanted.alpha_bar)
    # Flow matching writes x0 = z - t u and eps = z + (1 - t) u.
    torch.testing.assert_close(found.x0, z - expand(t, z) * wanted.u, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.eps, z + expand(1 - t, z) * wanted.u, rtol=0, atol=1e-14)


def test_v_against_diffusers():
    schedule, peer = NoiseSchedule.linear(), diffusers.DDPMScheduler()
    peer.alphas_cumprod = schedule.alpha_bar[1:].clone()
    level = torch.tensor([1, 2, 500, 1000])
    wanted = truth(schedule.at(level))
    torch.testing.assert_close(wanted.v, peer.get_velocity(wanted.x0, wanted.eps, level - 1), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "ends"), [("v", [0.0, 1.0]), ("u", [0.0, 1.0]), ("x0", [0.0]), ("eps", [1.0])])
def test_the_ends_that_are_defined(kind, ends):
    wanted = truth(torch.tensor(ends, dtype=F64))
    found = Prediction.from_output(kind, wanted.x_t, getattr(wanted, kind), wanted.alpha_bar)
    for row, end in enumerate(ends):
        # Pure noise says nothing about x0, nor clean data about eps, except through v.
        torch.testing.assert_close(found.x0[row], wanted.x0[row], rtol=0, atol=1e-12)
        if kind in ("v", "u") or end == 0.0:
            torch.testing.assert_close(found.eps[row], wanted.eps[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "end", "message"), [("eps", 0.0, "zero terminal SNR"), ("x0", 1.0, "clean data")])
def test_the_ends_that_are_not_are_refused_by_row(kind, end, message):
    wanted = truth(torch.tensor([0.5, end, 0.7, end], dtype=F64))
    with pytest.raises(InvalidPrediction, match=rf"{message}.*found in rows \[1, 3\]"):
        Prediction.from_output(kind, wanted.x_t, getattr(wanted, kind), wanted.alpha_bar)


def test_another_shape_is_refused():
    wanted = truth(torch.tensor([0.5], dtype=F64))
    for kind in KINDS:
        with pytest.raises(InvalidShape, match="they must agree"):
            Prediction.from_output(kind, wanted.x_t, wanted.x0[:, :1], wanted.alpha_bar)


def test_a_new_x0_brings_its_eps():
    before = truth(torch.tensor([0.2, 0.9, 1.0], dtype=F64))
    after = before.with_x0(before.x0.clamp(-0.5, 0.5))
    again = Prediction.from_x0(before.x_t[:2], before.x0[:2].clamp(-0.5, 0.5), before.alpha_bar[:2])
    torch.testing.assert_close(after.eps[:2], again.eps)
    assert torch.equal(after.eps[2], before.eps[2]), "clean data keeps its eps"
    assert not torch.equal(after.eps[:2], before.eps[:2])


def test_a_new_x0_for_some_rows_leaves_the_others_bit_for_bit():
    before = truth(torch.tensor([0.2, 0.9, 0.5], dtype=F64))
    some = before.with_x0(torch.zeros_like(before.x0), torch.tensor([False, True, False]))
    everyone = before.with_x0(torch.zeros_like(before.x0))
    for name in ("x0", "eps"):
        for row in (0, 2):
            assert torch.equal(getattr(some, name)[row], getattr(before, name)[row])
        assert torch.equal(getattr(some, name)[1], getattr(everyone, name)[1])


@given(levels)
def test_a_shifted_score_is_tweedies_formula(alpha_bar):
    """score = (alpha x0 - x_t) / sigma^2 = -eps / sigma: shifting it by s moves both, and keeps them consistent."""
    before = truth(alpha_bar)
    shift = noise.normal(range(len(alpha_bar)), 2, 0, (3, 2), dtype=F64)
    after = before.shifted(shift)
    alpha, sigma = expand(alpha_bar.sqrt(), shift), expand((1 - alpha_bar).sqrt(), shift)
    torch.testing.assert_close(-after.eps / sigma, -before.eps / sigma + shift, rtol=0, atol=1e-9)
    tweedie = (alpha * after.x0 - before.x_t) / sigma**2
    torch.testing.assert_close(tweedie, -after.eps / sigma, rtol=1e-6, atol=1e-6)


def test_a_shift_at_pure_noise_changes_nothing():
    before = truth(torch.tensor([0.0, 0.5], dtype=F64))
    after = before.shifted(torch.ones_like(before.x0))
    assert torch.equal(after.x0[0], before.x0[0]) and torch.equal(after.eps[0], before.eps[0])
    assert not torch.equal(after.x0[1], before.x0[1])


def test_renoised_rows_keep_their_eps_under_a_new_x0():
    before = truth(torch.tensor([0.2, 0.9, 0.5], dtype=F64))
    rows = torch.tensor([True, False, False])
    other = torch.full_like(before.eps, 7.0)
    after = before.renoise_with(other, rows).with_x0(torch.zeros_like(before.x0))
    assert torch.equal(after.eps[0], other[0])
    torch.testing.assert_close(after.eps[1:], before.with_x0(torch.zeros_like(before.x0)).eps[1:])
    twice = before.renoise_with(other, rows).renoise_with(-other, torch.tensor([False, False, True]))
    assert twice.renoised is not None and twice.renoised.tolist() == [True, False, True]


def test_rows_are_taken_replaced_and_stacked():
    whole = truth(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64))
    picked = whole.rows(torch.tensor([2, 0]))
    assert torch.equal(picked.x0, whole.x0[[2, 0]]) and torch.equal(picked.alpha_bar, whole.alpha_bar[[2, 0]])
    assert torch.equal(whole.rows(slice(1, 3)).eps, whole.eps[1:3])
    back = whole.with_rows(torch.tensor([2, 0]), picked)
    for name in ("x_t", "x0", "eps", "alpha_bar"):
        assert torch.equal(getattr(back, name), getattr(whole, name))
    both = Prediction.cat([whole.rows(slice(0, 1)), whole.rows(slice(1, 4))])
    assert torch.equal(both.x0, whole.x0) and both.renoised is None and both.variance_fraction is None


def test_marks_and_fractions_travel_with_their_rows():
    whole = truth(torch.tensor([0.2, 0.4], dtype=F64))
    fraction = torch.rand(2, 3, 2, dtype=F64)
    learned = Prediction(whole.x_t, whole.x0, whole.eps, whole.alpha_bar, variance_fraction=fraction)
    assert torch.equal(learned.rows(torch.tensor([1])).variance_fraction, fraction[1:])
    assert Prediction.cat([learned, whole]).variance_fraction is None, "a row without one would have to invent it"
    marked = whole.renoise_with(whole.eps, torch.tensor([False, True]))
    stacked = Prediction.cat([whole, marked])
    assert stacked.renoised is not None and stacked.renoised.tolist() == [False, False, False, True]


def test_gradients_flow_and_detach_stops_them():
    alpha_bar = torch.tensor([0.5], dtype=F64)
    v = torch.ones(1, 2, dtype=F64, requires_grad=True)
    found = Prediction.from_v(torch.ones(1, 2, dtype=F64), v, alpha_bar)
    assert found.x0.requires_grad and not found.detach().x0.requires_grad
    gradient = torch.autograd.grad(found.x0.sum(), v)[0]
    torch.testing.assert_close(gradient, torch.full_like(v, -(0.5**0.5)).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_data_keeps_its_type(kind, dtype):
    wanted = truth(torch.tensor([0.5, 0.6], dtype=F64), dtype=dtype)
    found = Prediction.from_output(kind, wanted.x_t, getattr(wanted, kind), wanted.alpha_bar)
    assert (found.x0.dtype, found.eps.dtype, found.v.dtype, found.alpha_bar.dtype) == (dtype, dtype, dtype, F64)
    assert_same(found, wanted, 1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.usefixtures("unchecked")
def test_expand_wants_one_entry_per_row():
    assert expand(torch.ones(2), torch.ones(2, 3, 4)).shape == (2, 1, 1)
    for rows, like in (
        (torch.ones(3), torch.ones(2, 3)),
        (torch.ones(2, 1), torch.ones(2, 3)),
        (torch.ones(()), torch.ones(())),
    ):
        with pytest.raises(InvalidShape, match="one entry per row"):
            expand(rows, like)
