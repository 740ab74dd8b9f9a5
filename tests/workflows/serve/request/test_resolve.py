"""Fields judged together, and by what the model can do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.workflows.options.examples import EXAMPLES
from workflows.errors import InvalidRequest, ModelNotFound
from workflows.options.guidance import KINDS, SETTINGS, offered_kinds
from workflows.serve.request.capabilities import ModelCapabilities
from workflows.serve.request.resolve import ResolvedRequest, resolve
from workflows.serve.request.schema import LARGEST_SEED, GenerationRequest

CAPABILITIES = ModelCapabilities(
    model="digits",
    version="3",
    size=(8, 6),
    class_names=("zero", "one", "two"),
    guidance=tuple(KINDS),
    guidance_settings={"guidance_scale": 2.0, "classifier_scale": 3.0, "clip_scale": 4.0},
    default_steps=50,
    max_steps=200,
)


def resolved(**fields: object) -> ResolvedRequest:
    return resolve(GenerationRequest.model_validate({"prompt": "a one", **fields}), CAPABILITIES)


def test_defaults_are_filled_in_and_told() -> None:
    settings = resolved().settings
    assert (settings.model, settings.version, settings.size) == ("digits", "3", "8x6")
    assert (settings.sampler, settings.num_inference_steps, settings.eta) == ("ddim", 50, 0.0)
    assert (settings.guidance, settings.guidance_scale) == ("classifier_free", 2.0)


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"guidance": "none", "prompt": ""}, 0.0),
        ({"guidance": "direct"}, 1.0),
        ({"guidance": "classifier"}, 3.0),
        ({"guidance": "clip"}, 4.0),
        ({"guidance": "clip", "guidance_scale": 0.0}, 0.0),
    ],
)
def test_each_kind_has_its_own_scale(fields: dict[str, object], scale: float) -> None:
    assert resolved(**fields).settings.guidance_scale == scale


def test_pictures_of_one_request_have_consecutive_seeds() -> None:
    assert resolved(n=3, seed=7).settings.seeds == [7, 8, 9]


def test_drawn_seeds_differ_and_fit_into_a_double() -> None:
    seeds = {resolved().settings.seeds[0] for _ in range(20)}
    assert len(seeds) == 20
    assert max(seeds) < 2**53


@pytest.mark.parametrize("label", [1, "one"])
def test_a_class_is_found_by_name_and_by_index(label: object) -> None:
    request = resolved(prompt="", guidance="classifier", label=label)
    assert (request.label, request.settings.label, request.texts) == (1, "one", ())


def test_prompt_and_negative_prompt_are_encoded_in_this_order() -> None:
    assert resolved(negative_prompt="a two ").texts == ("a one", "a two")


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", None), ("dpm_solver", None), ("ddim", 0.0)])
def test_only_ddim_has_an_eta(sampler: str, eta: float | None) -> None:
    assert resolved(sampler=sampler).settings.eta == eta


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "", "guidance": "classifier"}, "prompt"),
        ({"guidance": "classifier", "label": 1}, "prompt"),
        ({"prompt": "", "guidance": "classifier", "label": 3}, "label"),
        ({"prompt": "", "guidance": "classifier", "label": "three"}, "label"),
        ({"size": "6x8"}, "size"),
        ({"num_inference_steps": 201}, "num_inference_steps"),
        ({"seed": LARGEST_SEED, "n": 2}, "seed"),
        ({"seeds": [3, 5]}, "seeds"),
        ({"seeds": [3, 4], "seed": 9}, "seeds"),
        ({"stream": True, "partial_images": 2, "preview_every": 3}, "preview_every"),
        ({"guidance": "classifier_free+clip", "prompt": ""}, "prompt"),
        ({"guidance": "classifier+clip", "label": 3}, "label"),
    ],
)
def test_a_contradiction_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolved(**fields)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")


def test_all_contradictions_are_told() -> None:
    with pytest.raises(InvalidRequest, match=r"size: .*; label: .*; num_inference_steps: "):
        resolved(guidance="classifier+clip", size="6x8", label=7, num_inference_steps=500)


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({"guidance": "none"}, ["prompt"]),
        ({"guidance": "none", "guidance_scale": 0.0}, ["prompt", "guidance_scale"]),
        ({"guidance": "direct", "negative_prompt": "a two"}, ["negative_prompt"]),
        ({"guidance": "direct", "guidance_scale": 7.5}, ["guidance_scale"]),
        ({"guidance": "clip", "apg_eta": 0.0, "cfg_plus_plus": True}, ["apg_eta", "cfg_plus_plus"]),
        ({"clip_scale": 3.0}, ["clip_scale"]),
        ({"label": 7}, ["label"]),
        ({"sampler": "ddpm", "eta": 0.5}, ["eta"]),
        ({"partial_images": 2, "preview_every": 5}, ["partial_images", "preview_every"]),
        ({"quality": "auto", "user": "me"}, ["user", "quality"]),
    ],
)
def test_what_changes_nothing_is_left_out_and_told(fields: dict[str, Any], idle: list[str]) -> None:
    found = resolved(seed=5, **fields)
    plain = resolved(
        seed=5,
        **{name: value for name, value in fields.items() if name == "guidance" or name == "sampler"},
        **({"prompt": ""} if "prompt" in idle else {}),
    )
    assert found.settings.without_effect == idle
    assert (found.texts, found.label, found.guidance) == (plain.texts, plain.label, plain.guidance)
    assert found.settings.model_dump(exclude={"without_effect"}) == plain.settings.model_dump(
        exclude={"without_effect"}
    )


KINDS_AND_SUMS = [
    *KINDS,
    "classifier_free+clip",
    "classifier_free+classifier",
    "classifier+clip",
    "direct+classifier+clip",
]


@pytest.mark.parametrize("guidance", KINDS_AND_SUMS)
@pytest.mark.parametrize("extra", [{}, {"guidance_scale": 5.0}, {"sampler": "ddpm", "n": 3}, {"classifier_scale": 9.0}])
def test_settings_that_an_answer_tells_can_be_sent_back(guidance: str, extra: dict[str, Any]) -> None:
    first = resolved(guidance=guidance, **extra)
    answered = first.settings.model_dump(exclude_none=True)
    again = resolve(GenerationRequest.model_validate(answered), CAPABILITIES)
    assert again.guidance == first.guidance
    # `none` and `direct` have no scale: the one that an answer shows is told to have had no effect.
    assert set(again.settings.without_effect) <= {"guidance_scale"}
    assert again.settings.model_copy(update={"without_effect": []}) == first.settings.model_copy(
        update={"without_effect": []}
    )


def test_kinds_are_joined_and_each_may_have_its_own_scale() -> None:
    found = resolved(guidance="clip+classifier_free", guidance_scale=3.0, clip_scale=9.0, negative_prompt="a two")
    assert found.settings.guidance == "classifier_free+clip"
    assert found.guidance.settings == {"guidance_scale": 3.0, "clip_scale": 9.0}
    assert (found.settings.guidance_scale, found.settings.clip_scale) == (3.0, 9.0)
    both = resolved(guidance="classifier_free+classifier", label="two")
    assert (both.label, both.texts) == (2, ("a one",))
    assert both.guidance.settings == {"guidance_scale": 2.0, "classifier_scale": 3.0}


def test_a_classifier_tells_what_it_steers_towards() -> None:
    assert resolved(guidance="classifier").settings.classifier_target == "prompt"
    assert resolved(guidance="classifier", prompt="", label=1).settings.classifier_target == "label"
    assert resolved(guidance="classifier_free+classifier", label=1).settings.classifier_target == "label"
    assert resolved().settings.classifier_target is None


def test_only_the_version_that_is_asked_for_answers() -> None:
    assert resolved(version="3").settings.version == "3"
    with pytest.raises(ModelNotFound, match="served as version 3, not 2") as caught:
        resolved(version="2")
    assert caught.value.param == "version"


def test_guidance_that_the_model_lacks_is_refused() -> None:
    plain = ModelCapabilities("digits", "3", (8, 8), (), offered_kinds(["condition"]), {}, 50, 200)
    with pytest.raises(InvalidRequest, match="offers none, direct, classifier_free") as caught:
        resolve(GenerationRequest(prompt="a one", guidance="clip"), plain)
    assert caught.value.param == "guidance"


@pytest.mark.parametrize("name", ["digits", "digits@champion"])
def test_the_served_model_may_be_named(name: str) -> None:
    assert resolved(model=name).settings.model == "digits"


def test_another_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="ask for 'digits'"):
        resolved(model="dall-e-3")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_setting_of_guidance_is_kept_and_can_be_sent_back(name: str) -> None:
    first = resolved(**EXAMPLES[name])
    answered = first.settings.model_dump(exclude_none=True)
    value = SETTINGS[name].checked(EXAMPLES[name][name])
    assert first.guidance.settings[name] == value
    again = resolved(**{field: answered[field] for field in EXAMPLES[name]})
    assert again.guidance == first.guidance


def test_settings_of_the_model_hold_where_a_request_says_nothing() -> None:
    capabilities = replace(CAPABILITIES, guidance_settings={"guidance_scale": 3.0, "guidance_rescale": 0.7})
    request = GenerationRequest(prompt="a one")
    assert resolve(request, capabilities).settings.guidance_rescale == 0.7
    off = GenerationRequest.model_validate({"prompt": "a one", "guidance_rescale": 0.0})
    assert resolve(off, capabilities).settings.guidance_rescale == 0.0
    assert resolve(GenerationRequest(prompt="a one", guidance="clip"), capabilities).settings.guidance_rescale is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"guidance_interval": [3.0, 1.0]},
            "guidance_interval",
            r"found \[3.0, 1.0\], wanted two numbers .* the smaller first",
        ),
        ({"cfg_plus_plus": True}, "guidance_scale", r"found 2, wanted a number in \[0, 1\] with cfg_plus_plus"),
        ({"cfg_plus_plus": True, "guidance_scale": 1.5}, "guidance_scale", "found 1.5"),
    ],
)
def test_settings_that_do_not_fit_name_the_field(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        resolved(**fields)
    assert caught.value.param == param
