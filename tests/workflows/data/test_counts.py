"""Counts of captions: exact as long as they fit, within a stated bound beyond, never more than fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from workflows.data.own.counts import MAX_CANDIDATES, CaptionCounts

KEPT = 400


def counted(captions: Iterable[str], label: str | None = None) -> CaptionCounts:
    found = CaptionCounts(KEPT)
    for caption in captions:
        found.add(label, caption)
    return found


def stream(size: int, distinct: int, seed: int = 0) -> list[str]:
    """A few captions are frequent, most of them occur once or twice."""
    return [f"caption {int(number)}" for number in distinct * np.random.default_rng(seed).random(size) ** 4]


@pytest.mark.parametrize("cut", [1, 7, 20_000])
def test_counts_are_exact_while_they_fit(cut: int) -> None:
    captions = stream(20_000, 2 * KEPT)
    wanted = Counter(captions)
    assert len(wanted) > KEPT
    found = CaptionCounts(KEPT)
    for start in range(0, len(captions), cut):
        found.merge(counted(captions[start : start + cut]).table())
    assert {text: count for (_, text), count in found.counts.items()} == wanted
    best = sorted(wanted, key=lambda text: (-wanted[text], text))[:MAX_CANDIDATES]
    assert found.candidates() == tuple(best)


@pytest.mark.parametrize("pieces", [1, 40])
def test_beyond_that_they_are_too_low_by_no_more_than_the_bound(pieces: int) -> None:
    captions = stream(100_000, 50_000)
    wanted, bound = Counter(captions), 100_000 // (KEPT + 1)
    found = CaptionCounts(KEPT)
    for part in np.array_split(captions, pieces):
        found.merge(counted(part.tolist()).table())
        assert len(found.counts) <= 2 * KEPT + MAX_CANDIDATES + 1
    short = {text: count - found.counts.get((None, text), 0) for text, count in wanted.items()}
    assert min(short.values()) >= 0
    assert 0 < max(short.values()) <= bound
    frequent = [text for text, count in wanted.items() if count > bound]
    assert frequent and all((None, text) in found.counts for text in frequent)
    assert len(wanted) > 10 * KEPT, "exact counts would not fit"


def test_captions_that_never_repeat_still_give_candidates() -> None:
    found = counted(f"{number:05d}" for number in range(10 * KEPT))
    assert {f"{number:05d}" for number in range(MAX_CANDIDATES)} <= {text for _, text in found.counts}
    assert len(found.candidates()) == MAX_CANDIDATES


def test_a_class_has_a_caption_of_its_own_even_if_none_is_frequent() -> None:
    found = CaptionCounts(KEPT)
    for number in range(10 * KEPT):
        found.add("common", f"seen {number % 3}")
        found.add("other", f"unique {number}")
    for number in range(KEPT, 2 * KEPT):
        found.add("late", f"late {number}")
        found.add("other", f"more {number}")
    assert found.class_names() == ("common", "late", "other")
    assert found.candidates()[0] == "seen 0"
    assert found.candidates()[1].startswith("late ")
    assert len(set(found.candidates())) == 3


def test_classes_need_a_label_of_every_sample_and_are_in_natural_order() -> None:
    found = CaptionCounts()
    for label in ("10", "9", "b", "9"):
        found.add(label, "the same")
    assert found.class_names() == ("9", "10", "b")
    assert found.candidates() == ("the same", "10", "b"), "a caption of another class gives way to the name"
    found.add(None, "x")
    assert found.class_names() == ()
    assert CaptionCounts().candidates() == ()
