"""What clients may send: seen on the wire from real ones, and what must be refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from workflows.options.guidance import KINDS, SETTINGS
from workflows.serve.http.errors import invalid_fields_answer
from workflows.serve.request.schema import LARGEST_SEED, OWN_SCALES, EditRequest, GenerationRequest


def read(**fields: object) -> GenerationRequest:
    return GenerationRequest.model_validate({"prompt": "a seven", **fields})


def told(**fields: object) -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as caught:
        read(**fields)
    detail = invalid_fields_answer(caught.value.errors()).error
    return detail.message, detail.param


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": "auto"},
        {"quality": "standard", "style": "vivid", "response_format": "url"},
        {"background": "opaque", "moderation": "low", "output_format": "png", "output_compression": 100},
        {"user": "someone", "safety_identifier": "x"},
    ],
)
def test_values_that_change_nothing_are_accepted_and_told(fields: dict[str, object]) -> None:
    request = read(**fields)
    assert set(request.idle) == set(fields) - {"response_format"}


def test_null_means_absent() -> None:
    optional = {name: None for name in GenerationRequest.model_fields if name != "prompt"}
    assert read(**optional) == read()


def test_a_null_prompt_is_missing() -> None:
    assert told(prompt=None) == ("prompt: missing", "prompt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quality", "hd"),
        ("style", "natural"),
        ("background", "transparent"),
        ("output_format", "webp"),
        ("output_compression", 50),
        ("stream", "yes"),
        ("partial_images", 4),
        ("preview_every", 0),
        ("deadline_seconds", 0.0),
        ("response_format", "bytes"),
        ("size", "large"),
        ("n", 0),
        ("n", 11),
        ("n", "3"),
        ("n", True),
        ("n", 1.5),
        ("guidance", "strong"),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("sampler", "euler"),
        ("num_inference_steps", 0),
        ("eta", 1.01),
        ("seed", -1),
        ("seed", LARGEST_SEED + 1),
        ("label", -1),
        ("label", 1.5),
        ("prompt", 7),
        ("prompt", "a" * 4001),
        ("prompt", "half a pair \ud800"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: object) -> None:
    message, param = told(**{name: value})
    assert param == name
    assert message.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("guidance_interval", [1.0], "found [1.0], wanted two numbers in [0, 1e+09], the smaller first"),
        ("guidance_interval", [None, 5.0], "found [None, 5.0], wanted two numbers in [0, 1e+09], the smaller first"),
        ("apg_eta", "much", "found 'much', wanted a number in [0, 100]"),
        ("cfg_plus_plus", 1, "found 1, wanted true or false"),
    ],
)
def test_a_setting_of_guidance_that_is_refused_says_what_is_wanted(name: str, value: object, message: str) -> None:
    assert told(**{name: value}) == (f"{name}: {message}: give that, or leave it out", name)


def test_the_document_still_knows_the_bounds_of_a_setting() -> None:
    fields = GenerationRequest.model_json_schema()["properties"]
    assert fields["apg_eta"]["anyOf"][0] == {"maximum": 100.0, "minimum": 0.0, "type": "number"}
    interval = fields["guidance_interval"]["anyOf"][0]
    assert (interval["minItems"], interval["maxItems"], interval["items"]["maximum"]) == (2, 2, 1e9)
    assert fields["cfg_plus_plus"]["anyOf"][0] == {"type": "boolean"}


def test_an_unknown_field_is_refused_by_name() -> None:
    assert told(num_steps=5) == ("num_steps: unknown field", "num_steps")


def test_the_limits_of_scales_are_those_of_the_table() -> None:
    fields = GenerationRequest.model_json_schema()["properties"]
    for name in ("guidance_scale", *OWN_SCALES):
        setting = SETTINGS[name]
        assert fields[name]["anyOf"][0].get("maximum", float("inf")) == setting.high
        for kind in KINDS.values():
            if kind.scale is not None:
                assert read(**{name: max(*kind.swept, kind.default)})
        assert told(**{name: -1.0}) == (f"{name}: {setting.fault(-1.0)}", name)


def test_seeds_stand_for_seed_and_n() -> None:
    request = read(seeds=[7, 8, 9])
    assert (request.seed, request.n) == (7, 3)


def test_all_faults_are_told() -> None:
    message, _ = told(n=0, sampler="euler", steps=3)
    assert all(f"{name}: " in message for name in ("n", "sampler", "steps"))


def test_the_largest_seed_and_a_whole_number_as_scale_are_accepted() -> None:
    request = read(seed=LARGEST_SEED, guidance_scale=2, label=3)
    assert (request.seed, request.guidance_scale, request.label) == (LARGEST_SEED, 2.0, 3)


def test_the_fields_of_requests_are_the_golden_ones() -> None:
    routes = {"generations": GenerationRequest, "edits": EditRequest}
    found = [f"{route} {name}" for route, kind in routes.items() for name in kind.model_fields]
    golden = Path(__file__).parents[2] / "golden" / "request_fields.txt"
    assert "\n".join(found) + "\n" == golden.read_text()
