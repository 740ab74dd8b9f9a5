"""The gate against pictures whose quality is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workflows.config.schema import GateConfig
from workflows.release.gate import Seen, compare, verdict

N, WIDTH = 300, 8
REAL = np.random.default_rng(0).normal(size=(400, WIDTH))


def seen(seed: int, accuracy: float = 0.9, score: float = 80.0, shift: float = 0.0) -> Seen:
    rng = np.random.default_rng(seed)
    return Seen(
        {"accuracy": (rng.random(N) < accuracy).astype(np.float64)},
        rng.normal(score, 5.0, N),
        rng.normal(size=(N, WIDTH)) + shift,
    )


def verdicts(champion: Seen, challenger: Seen, **gate: object) -> tuple[dict[str, str], bool]:
    found = compare(GateConfig.model_validate(gate), champion, challenger, REAL)
    return {line.metric: line.verdict for line in found.lines}, found.passed


def test_an_equal_version_passes_and_is_not_better() -> None:
    gate = {"max_clip_fd_rise": 2.0, "max_accuracy_drop": 0.1}
    found, passed = verdicts(seen(1), seen(2), **gate)
    assert passed
    assert "worse" not in found.values()
    assert not verdicts(seen(1), seen(1), require="better")[1], "the same pictures are no gain"


@pytest.mark.parametrize(
    ("worse", "metric"), [({"accuracy": 0.7}, "accuracy"), ({"score": 76.0}, "clip_score"), ({"shift": 0.4}, "clip_fd")]
)
def test_what_is_worse_in_one_figure_is_refused_and_the_reverse_passes(worse: dict[str, float], metric: str) -> None:
    gate = {"max_clip_fd_rise": 5.0, "max_accuracy_drop": 0.2, "max_clip_score_drop": 10.0}
    found, passed = verdicts(seen(1), seen(2, **worse), **gate)
    assert found[metric] == "worse"
    assert not passed
    found, passed = verdicts(seen(2, **worse), seen(1), require="better", **gate)
    assert found[metric] == "better"
    assert passed


@pytest.mark.parametrize(
    ("worse", "metric", "sign"),
    [({"accuracy": 0.7}, "accuracy", 1), ({"score": 76.0}, "clip_score", 1), ({"shift": 0.4}, "clip_fd", -1)],
)
def test_a_shown_gain_is_positive_where_the_challenger_is_better(
    worse: dict[str, float], metric: str, sign: int
) -> None:
    """CLIP-FD is a distance: there less is better."""
    for champion, challenger, better in ((seen(1), seen(2, **worse), False), (seen(2, **worse), seen(1), True)):
        lines = {line.metric: line for line in compare(GateConfig(), champion, challenger, REAL).lines}
        assert (lines[metric].gain > 0) is better
        assert all(line.low <= line.gain <= line.high for line in lines.values())
        assert lines[metric].gain == pytest.approx(sign * (lines[metric].challenger - lines[metric].champion))


def test_too_few_pictures_cannot_rule_a_loss_out() -> None:
    few = [
        Seen({"accuracy": one.right["accuracy"][:10]}, np.array(one.scores)[:10], np.array(one.features)[:10])
        for one in (seen(1), seen(2))
    ]
    found, passed = verdicts(*few)
    assert "unclear" in found.values()
    assert not passed


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.1, 0.2, "better"), (-0.2, -0.1, "worse"), (-0.05, 0.1, "same"), (-0.2, 0.1, "unclear")],
)
def test_verdict_of_an_interval(low: float, high: float, wanted: str) -> None:
    assert verdict(low, high, allowed=0.1) == wanted


def test_the_interval_holds_the_true_gain_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a, b = (Seen({"retrieval": (rng.random(N) < p).astype(float)}) for p in (0.5, 0.6))
        line = compare(GateConfig(resamples=200), a, b, REAL[:, :2]).lines[0]
        inside += line.low <= 0.1 <= line.high
    assert 50 <= inside <= 60


def test_the_table_shows_every_figure() -> None:
    text = compare(GateConfig(), seen(1), seen(2, accuracy=0.6), REAL).text().splitlines()
    assert [line.split()[0] for line in text] == ["metric", "accuracy", "clip_score", "clip_fd"]
    assert text[1].endswith("worse")


def with_rows(**figures: object) -> Seen:
    return Seen({}, **figures)  # type: ignore[arg-type]


def test_no_more_counts_than_real_pictures_have() -> None:
    """A champion that a judge sees more clearly than real pictures does not stand against one that is as clear."""
    champion, challenger = seen(0, score=90.0), seen(0, score=81.0)
    assert not compare(GateConfig(), champion, challenger, REAL).passed, "negative control"
    found = compare(GateConfig(), champion, challenger, REAL, {"clip_score": 80.0})
    (line,) = [line for line in found.lines if line.metric == "clip_score"]
    assert (line.verdict, line.champion) == ("same", pytest.approx(90.0, abs=0.5))
    assert found.passed
    below = compare(GateConfig(), champion, seen(0, score=70.0), REAL, {"clip_score": 80.0})
    assert not below.passed
    (line,) = [line for line in below.lines if line.metric == "clip_score"]
    assert line.gain == pytest.approx(-10.0, abs=0.5), "what is missing counts from the real pictures down"


def test_a_loss_on_held_out_samples_counts_beyond_its_allowance_only() -> None:
    """Its noise is shared, so the smallest difference is sure."""
    losses = np.random.default_rng(0).uniform(0.1, 0.3, N)
    for factor, wanted, passes in ((1.02, "same", True), (1.2, "worse", False), (0.9, "better", True)):
        found = compare(GateConfig(), with_rows(losses=losses), with_rows(losses=losses * factor), REAL)
        assert [line.verdict for line in found.lines] == [wanted]
        assert found.passed is passes


@pytest.mark.parametrize(
    ("champion", "challenger", "passes"),
    [(0.01, 0.01, True), (0.0, 0.03, True), (0.01, 0.6, False), (0.6, 0.01, True), (0.6, 0.6, True)],
)
def test_copies_count_where_they_are_more_than_honest(champion: float, challenger: float, passes: bool) -> None:
    a, b = ((np.arange(N) < share * N).astype(np.float64) for share in (champion, challenger))
    found = compare(GateConfig(), with_rows(copies=a), with_rows(copies=b), REAL)
    assert found.passed is passes
    if not passes:
        assert "copies its training samples" in found.advice(GateConfig())


def test_vectors_are_compared_by_their_energy_distance() -> None:
    rng = np.random.default_rng(0)
    real, near, far = (rng.normal(size=(N, 4)) + shift for shift in (0.0, 0.0, 1.0))
    refused = compare(GateConfig(), with_rows(rows=near), with_rows(rows=far), real)
    assert ([line.metric for line in refused.lines], refused.passed) == (["energy_distance"], False)
    assert compare(GateConfig(), with_rows(rows=far), with_rows(rows=near), real).lines[0].verdict == "better"
    assert compare(GateConfig(), with_rows(rows=near), with_rows(rows=near), real).passed


def test_the_advice_fits_what_stands_against_a_version() -> None:
    few = [Seen({"retrieval": (np.arange(10) % period == 0).astype(float)}) for period in (2, 3)]
    found = compare(GateConfig(), few[0], few[1], REAL)
    assert "register.gate.num_prompts=1200" in found.advice(GateConfig())
    losses = np.full(N, 0.2)
    found = compare(GateConfig(), with_rows(losses=losses), with_rows(losses=losses * 1.5), REAL)
    assert "by heart" in found.advice(GateConfig())
    worse = compare(GateConfig(), Seen({"retrieval": np.ones(N)}), Seen({"retrieval": np.zeros(N)}), REAL)
    assert "worse in retrieval" in worse.advice(GateConfig())
    assert not compare(GateConfig(require="better"), seen(1), seen(1), REAL).passed


def test_the_table_says_what_was_looked_at_and_what_not() -> None:
    found = replace(compare(GateConfig(), seen(1), seen(2), REAL), looked=("compared: much",), unseen=("classes",))
    assert found.text().splitlines()[-2:] == ["compared: much", "not seen: classes"]
    assert found.values()["unseen"] == ["classes"]
