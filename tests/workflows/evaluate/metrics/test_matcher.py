"""The second judge knows real pictures by their captions, in any language, and guesses where captions say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workflows.data.builtin import digits
from workflows.data.dataset import Split
from workflows.evaluate.metrics.matcher import Matcher
from workflows.evaluate.metrics.matching import Candidates, match


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    train, held_out = digits.digits(0.2, 0)
    return train, held_out


def asked(split: Split) -> list[str]:
    return [captions[0] for captions in split.captions]


def test_it_finds_the_captions_of_real_digits(splits: tuple[Split, Split]) -> None:
    train, held_out = splits
    candidates = Candidates.of(held_out.captions, asked(held_out))
    found = match(Matcher(train), held_out.images, asked(held_out), candidates)
    assert found.first.mean() > 0.9
    assert found.five.mean() >= found.first.mean()
    assert found.above_chance
    assert 0.05 < found.chance < 0.2, "ten digits with several wordings each"


def test_it_is_the_same_twice_and_leaves_the_generator_alone(splits: tuple[Split, Split]) -> None:
    few = splits[0].rows(np.arange(60))
    before = torch.random.get_rng_state()
    one, two = (Matcher(few).pictures(few.images[:5]) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.allclose(one.norm(dim=1), torch.ones(5), atol=1e-5)


def test_shuffled_captions_are_at_chance(splits: tuple[Split, Split]) -> None:
    train, held_out = splits
    order = np.random.default_rng(0).permutation(len(train))
    wrong = Split(
        train.sample_ids, train.images, tuple(train.captions[i] for i in order), train.labels, train.attributes,
        train.unseen,
    )  # fmt: skip
    found = match(Matcher(wrong), held_out.images, asked(held_out), Candidates.of(held_out.captions, asked(held_out)))
    assert found.first.mean() < 0.3


@pytest.mark.parametrize(
    "captions",
    [
        ("",), ("x",), ("word " * 300,), ("\u6c49\u5b57",), ("\u0627\u0644\u0639\u0631\u0628\u064a\u0629",),
        ("\U0001f600", "gesicht", "\u041b\u0438\u0446\u043e"),
    ],
)  # fmt: skip
def test_any_caption_has_a_vector(splits: tuple[Split, Split], captions: tuple[str, ...]) -> None:
    few = splits[0].rows(np.arange(3))
    same = Split(few.sample_ids, few.images, (captions,) * 3, few.labels, few.attributes, few.unseen)
    judge = Matcher(same)
    candidates = Candidates.of(same.captions, asked(same))
    assert not candidates.comparable
    assert bool(torch.isfinite(judge.texts(captions)).all())
    assert match(judge, few.images, asked(same), candidates).first.tolist() == [1.0] * 3


def test_other_captions_of_the_same_picture_are_right() -> None:
    candidates = Candidates.of([("red", "rot"), ("blue",)], ["red", "blue"])
    assert candidates.texts == ("red", "blue", "rot")
    assert candidates.same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert candidates.chance(["red", "blue"]) == pytest.approx(0.5)
