"""Conditions: rows join, leave, hide and pad without touching their neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_core.condition import NO_LABEL, Condition
from diffusion_core.errors import InvalidCondition

PARTS = ("present", "tokens", "mask", "pooled", "label")


def texts(num_rows: int, length: int = 3, width: int = 4, start: int = 0) -> Condition:
    """Rows whose every number says which row it is."""
    rows = torch.arange(start, start + num_rows, dtype=torch.float32)
    tokens = rows[:, None, None] + torch.arange(length)[:, None] / 10 + torch.arange(width) / 100
    return Condition.of(tokens=tokens, pooled=tokens.mean(dim=1), label=rows.long())


def assert_equal_rows(found: Condition, wanted: Condition, parts: tuple[str, ...] = PARTS) -> None:
    for name in parts:
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name


def test_given_rows_are_present_and_null_rows_are_not():
    assert texts(2).present.tolist() == [True, True]
    null = Condition.null(3)
    assert null.num_rows == 3 and null.present.tolist() == [False] * 3
    assert (null.tokens, null.mask, null.pooled, null.label, null.negative) == (None,) * 5


@pytest.mark.parametrize("part", ["tokens", "pooled", "label"])
def test_any_single_part_makes_a_condition(part):
    whole = texts(2)
    single = Condition.of(**{part: getattr(whole, part)})
    assert single.num_rows == 2 and torch.equal(getattr(single, part), getattr(whole, part))


def test_hiding_keeps_the_target():
    """A classifier can steer an unconditional denoiser towards a label that the denoiser does not see."""
    condition = texts(3)
    assert_equal_rows(condition.hidden(), condition, PARTS[1:])
    assert condition.hidden().present.tolist() == [False] * 3
    some = condition.hidden(torch.tensor([False, True, False]))
    assert some.present.tolist() == [True, False, True]
    assert some.hidden(torch.tensor([False, False, True])).present.tolist() == [True, False, False]
    assert condition.present.tolist() == [True] * 3, "the original is untouched"


def test_rows_are_taken_by_index_and_slice():
    condition = texts(4).with_settings(guidance_scale=[1.0, 2.0, 3.0, 4.0])
    picked = condition.rows(torch.tensor([3, 1]))
    assert picked.label is not None and picked.label.tolist() == [3, 1]
    assert picked.settings["guidance_scale"].tolist() == [4.0, 2.0]
    assert_equal_rows(condition.rows(slice(1, 3)), texts(2, start=1))


def test_rows_are_replaced_and_the_others_stay():
    changed = texts(4).with_rows(torch.tensor([2, 0]), texts(4, start=10))
    assert changed.label is not None and changed.label.tolist() == [10, 1, 12, 3]
    assert_equal_rows(changed.rows(torch.tensor([1, 3])), texts(4).rows(torch.tensor([1, 3])))


def test_cat_then_rows_gives_every_part_back():
    parts = [texts(2), texts(1, start=5), texts(3, start=7)]
    stacked = Condition.cat(parts)
    start = 0
    for part in parts:
        assert_equal_rows(stacked.rows(slice(start, start + part.num_rows)), part)
        start += part.num_rows


def test_cat_pads_short_texts_behind_a_mask():
    short, long = texts(1, length=2), texts(2, length=5, start=3)
    stacked = Condition.cat([short, long])
    assert stacked.tokens is not None and stacked.mask is not None
    assert stacked.tokens.shape == (3, 5, 4)
    assert stacked.mask.tolist() == [[True, True, False, False, False], [True] * 5, [True] * 5]
    assert torch.equal(stacked.tokens[:1, :2], short.tokens) and not stacked.tokens[0, 2:].any()


def test_cat_keeps_a_mask_beside_none():
    mask = torch.tensor([[True, False, True]])
    masked = Condition.of(tokens=torch.ones(1, 3, 4), mask=mask)
    stacked = Condition.cat([masked, texts(1)])
    assert stacked.mask is not None and stacked.mask.tolist() == [[True, False, True], [True] * 3]


def test_cat_with_rows_that_lack_parts():
    stacked = Condition.cat([Condition.of(label=[4]), texts(1), Condition.null(1)])
    assert stacked.present.tolist() == [True, True, False]
    assert stacked.label is not None and stacked.label.tolist() == [4, 0, NO_LABEL]
    assert stacked.mask is not None and stacked.mask.any(dim=1).tolist() == [False, True, False]
    assert stacked.pooled is not None and not stacked.pooled[[0, 2]].any()


def test_cat_of_negative_conditions_hides_where_there_is_none():
    negative = Condition.of(label=[9])
    one = Condition.of(label=[1])
    with_negative = Condition(one.present, label=one.label, negative=negative)
    stacked = Condition.cat([with_negative, one])
    assert stacked.negative is not None and stacked.negative.present.tolist() == [True, False]
    assert stacked.negative.label is not None and stacked.negative.label.tolist() == [9, 1]
    assert stacked.rows(torch.tensor([1, 0])).negative.present.tolist() == [False, True]


def test_settings_fall_back_row_by_row():
    said = Condition.of(label=[0, 1]).with_settings(guidance_scale=3.0)
    silent = Condition.of(label=[2])
    stacked = Condition.cat([said, silent])
    assert stacked.setting("guidance_scale", 1.5).tolist() == [3.0, 3.0, 1.5]
    assert math.isnan(float(stacked.settings["guidance_scale"][2]))
    assert stacked.setting("another", 7.0).tolist() == [7.0] * 3
    assert stacked.setting("guidance_scale", 0.0).dtype == torch.float64


def test_settings_take_one_number_or_one_per_row_and_are_merged():
    condition = Condition.null(2).with_settings(a=1.0, b=[2, 3]).with_settings(b=torch.tensor([4.0, 5.0]), c=6)
    assert {name: value.tolist() for name, value in condition.settings.items()} == {
        "a": [1.0, 1.0],
        "b": [4.0, 5.0],
        "c": [6.0, 6.0],
    }


def test_casting_moves_real_numbers_only():
    condition = texts(2).with_settings(guidance_scale=2.0).to("cpu", torch.float64)
    assert condition.tokens is not None and condition.pooled is not None and condition.label is not None
    assert (condition.tokens.dtype, condition.pooled.dtype) == (torch.float64, torch.float64)
    assert (condition.label.dtype, condition.present.dtype) == (torch.int64, torch.bool)
    assert condition.settings["guidance_scale"].dtype == torch.float64


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"tokens": torch.ones(3, 2, 4)}, "tokens has shape .* wanted 3 axes and 2 rows"),
        ({"tokens": torch.ones(2, 4)}, "tokens has shape"),
        ({"pooled": torch.ones(1, 4)}, "pooled has shape"),
        ({"label": torch.zeros(3, dtype=torch.int64)}, "label has shape"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, "mask .* has no tokens"),
        ({"tokens": torch.ones(2, 3, 4), "mask": torch.ones(2, 4, dtype=torch.bool)}, "mask .* has no tokens"),
        ({"negative": Condition.null(3)}, "negative has 3 rows, wanted 2"),
        ({"settings": {"guidance_scale": torch.ones(3)}}, "setting guidance_scale has shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(InvalidCondition, match=message):
        Condition(torch.ones(2, dtype=torch.bool), **parts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Condition.of, "no tokens, pooled vector or label given"),
        (lambda: Condition.cat([]), "at least one row"),
        (lambda: Condition.cat([texts(1), texts(1, width=5)]), r"widths \[4, 5\] cannot share a batch"),
        (
            lambda: Condition.cat([Condition.of(pooled=torch.ones(1, n)) for n in (3, 4)]),
            r"pooled of widths \[\(3,\), \(4,\)\] cannot share a batch",
        ),
    ],
)
def test_conditions_that_cannot_be_are_refused(make, message):
    with pytest.raises(InvalidCondition, match=message):
        make()
