"""Kinds of guidance, as users name them, against what the wrappers read."""

from __future__ import annotations

import pytest
import torch

from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidLevels
from diffusion_core.sampler import ddim, ddpm, dpm_solver
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import trailing
from workflows.errors import InvalidRequest
from workflows.model.guidance import steer
from workflows.options.guidance import Guidance
from workflows.options.samplers import make_plan
from workflows.towers.features import EncodedText

SCALES = {"guidance_scale": 2.0, "classifier_scale": 3.0, "clip_scale": 4.0}


def text(num_rows: int = 2, seed: int = 0) -> EncodedText:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num_rows, 5, 8, generator=generator)
    return EncodedText(tokens, torch.ones(num_rows, 5, dtype=torch.bool), tokens.mean(dim=1))


@pytest.mark.parametrize(
    ("guidance", "present", "scales"),
    [
        ("direct", True, (1.0, 0.0, 0.0)),
        ("classifier_free", True, (2.0, 0.0, 0.0)),
        ("classifier", False, (1.0, 3.0, 0.0)),
        ("clip", False, (1.0, 0.0, 4.0)),
        ("classifier_free+clip", True, (2.0, 0.0, 4.0)),
        ("classifier+clip", False, (1.0, 3.0, 4.0)),
        ("direct+classifier", True, (1.0, 3.0, 0.0)),
    ],
)
def test_each_kind(guidance: str, present: bool, scales: tuple[float, float, float]) -> None:
    condition = steer(Guidance.of(guidance).over(SCALES), 2, text=text())
    assert condition.present.tolist() == [present, present]
    assert condition.pooled is not None, "a gradient needs the target, hidden or not"
    # A kind that is not asked for is not named, and 0 is what its wrapper takes then.
    found = [condition.setting(name, 0.0).tolist() for name in SCALES]
    assert found == [[scale, scale] for scale in scales]


def test_unconditional_rows_hold_no_target() -> None:
    condition = steer(Guidance.of("none").over(SCALES), 3, text=text(3))
    assert (condition.num_rows, condition.pooled, condition.tokens) == (3, None, None)
    assert not condition.present.any()


def test_scales_per_row() -> None:
    rows = [steer(Guidance.of("classifier_free", guidance_scale=w), 1, text=text(1)) for w in (1.5, 0.0)]
    condition = Condition.cat(rows)
    assert condition.setting("guidance_scale", 9.0).tolist() == [1.5, 0.0]


def test_labels_without_text() -> None:
    condition = steer(Guidance.of("classifier", classifier_scale=3.0), 2, labels=[4, -1], num_classes=10)
    assert condition.label is not None
    assert condition.label.tolist() == [4, -1]
    assert not condition.present.any()


def test_negative_prompts_are_seen() -> None:
    condition = steer(Guidance.of("classifier_free", guidance_scale=2.0), 2, text=text(), negative=text(seed=1))
    assert condition.negative is not None
    assert condition.negative.present.all()
    assert torch.equal(condition.negative.pooled, text(seed=1).pooled)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guidance", "kwargs", "param"),
    [
        ("magic", {"text": text()}, "guidance"),
        ("none+clip", {"text": text()}, "guidance"),
        ("", {"text": text()}, "guidance"),
        ("direct", {}, "prompt"),
        ("clip", {}, "prompt"),
        ("classifier", {}, "prompt"),
        ("classifier+clip", {"labels": [1, 2]}, "prompt"),
        ("direct", {"text": text(), "labels": [1, 2]}, "label"),
        ("classifier", {"labels": [1, 10], "num_classes": 10}, "label"),
        ("classifier", {"labels": [1, -2], "num_classes": 10}, "label"),
        ("direct", {"text": text(), "negative": text()}, "negative_prompt"),
    ],
)
def test_what_does_not_fit_names_the_field(guidance: str, kwargs: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        steer(Guidance.of(guidance), 2, **kwargs)
    assert caught.value.param == param


def test_kinds_may_come_in_any_order() -> None:
    assert Guidance.of("clip+direct") == Guidance.of("direct+clip") == Guidance(("direct", "clip"))


def test_plans_are_those_of_the_core() -> None:
    schedule = NoiseSchedule.cosine(100)
    levels = trailing(schedule, 7)
    for name, wanted in (
        ("ddim", ddim(schedule, levels)),
        ("ddpm", ddpm(schedule, levels)),
        ("dpm_solver", dpm_solver(schedule, levels)),
    ):
        found = make_plan(schedule, name, 7)
        assert found.levels == levels
        assert all(torch.equal(getattr(found, c), getattr(wanted, c)) for c in "ABCD")
    assert torch.equal(make_plan(schedule, "ddim", 7, 0.5).D, ddim(schedule, levels, 0.5).D)


def test_what_no_plan_can_do() -> None:
    schedule = NoiseSchedule.cosine(100)
    with pytest.raises(InvalidRequest, match="unknown sampler") as unknown:
        make_plan(schedule, "euler", 7)
    with pytest.raises(InvalidRequest, match="no effect with sampler 'ddpm': leave it out, or take ddim") as useless:
        make_plan(schedule, "ddpm", 7, 0.5)
    assert (unknown.value.param, useless.value.param) == ("sampler", "eta")
    with pytest.raises(InvalidLevels):
        make_plan(schedule, "ddim", 101)
