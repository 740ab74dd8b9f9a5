"""The README of a version says how the model draws, and its example runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.workflows.conftest import tiny_card
from workflows.errors import InvalidRequest
from workflows.options.guidance import DEFAULT_SCALES, SETTINGS, Guidance
from workflows.package.files import Defaults, PackageCard
from workflows.release.card import model_card
from workflows.release.pyfunc import default_params

PLUS_PLUS = {"guidance_scale": 0.5, "cfg_plus_plus": True}


def card_with(own: dict[str, Any]) -> PackageCard:
    return replace(tiny_card(), defaults=Defaults(50, DEFAULT_SCALES | own))


def params_of(text: str) -> dict[str, Any]:
    """The parameters of the example."""
    (params,) = re.findall(r"params=(\{.*?\})", text)
    found: dict[str, Any] = json.loads(params)
    return found


def predicted(card: PackageCard, params: dict[str, Any]) -> Guidance:
    """The guidance with which pyfunc draws."""
    given = default_params(card) | params
    return Guidance.of(given["guidance"]).with_settings(**{name: given[name] for name in SETTINGS})


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({}, "classifier-free scale 2."),
        (PLUS_PLUS, "classifier-free scale 0.5, cfg_plus_plus true."),
        ({"guidance_interval": [0.3, 5.0]}, "classifier-free scale 2, guidance_interval [0.3, 5.0]."),
    ],
)
def test_it_tells_every_setting_and_its_example_draws_with_them(own: dict[str, Any], told: str) -> None:
    card = card_with(own)
    text = model_card("digits", card, {}, {})
    assert f"Defaults: 50 DDIM steps, {told}" in text
    own_guidance = Guidance.of("classifier_free").over(card.defaults.guidance)
    assert predicted(card, params_of(text)).core_settings() == own_guidance.core_settings()


def test_an_example_with_a_scale_of_another_model_would_not_run() -> None:
    with pytest.raises(InvalidRequest, match="guidance_scale"):
        predicted(card_with(PLUS_PLUS), {"guidance_scale": 2.0})


def test_figures_without_labels_come_with_their_intervals_and_warnings() -> None:
    figures = {
        "retrieval": 0.5,
        "retrieval_chance": 0.01,
        "share_of_copies": 0.7,
        "intervals": {"retrieval": {"low": 0.4, "high": 0.6}},
        "nearest": {"remembers": True},
    }
    text = model_card("mine", replace(tiny_card(), withheld=("clip",)), figures, {})
    assert "| 0.5 [0.4, 0.6] |" in text
    assert "copies training samples" in text
    assert "does not help here: clip" in text
    assert "copies training samples" not in model_card("mine", tiny_card(), {}, {})
