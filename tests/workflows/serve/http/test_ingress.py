"""The routes, over a real replica in this process: no Ray, no socket."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from tests.workflows.options.examples import EXAMPLES
from workflows import __version__
from workflows.model.model import ModelPackage
from workflows.serve.replica.replica import Replica
from workflows.serve.request.pictures import PROVENANCE_KEY
from workflows.serve.request.schema import StreamEvent

PROMPT = "a handwritten one"


def call(api: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def post(api: FastAPI, **fields: object) -> httpx.Response:
    return call(api, "POST", "/v1/images/generations", json={"prompt": PROMPT, **fields})


def pixels(file: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(file)))


def pictures(response: httpx.Response) -> list[NDArray[np.uint8]]:
    assert response.status_code == 200, response.text
    return [pixels(base64.b64decode(image["b64_json"])) for image in response.json()["data"]]


@pytest.mark.parametrize("sampler_name", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"prompt": "", "guidance": "none"}, {"prompts": 1, "guidance": "none"}),
        ({"guidance": "direct"}, {"prompts": [PROMPT], "guidance": "direct"}),
        (
            {"guidance_scale": 3.0, "negative_prompt": "a two"},
            {"prompts": [PROMPT], "guidance_scale": 3.0, "negative_prompts": ["a two"]},
        ),
        (
            {"prompt": "", "guidance": "classifier", "label": "two"},
            {"prompts": 1, "guidance": "classifier", "labels": [2]},
        ),
        ({"guidance": "classifier"}, {"prompts": [PROMPT], "guidance": "classifier"}),
        ({"guidance": "clip"}, {"prompts": [PROMPT], "guidance": "clip"}),
    ],
)
def test_pictures_are_those_of_the_package(
    api: FastAPI, tiny_package: Path, sampler_name: str, fields: dict[str, Any], asked: dict[str, Any]
) -> None:
    response = post(api, n=2, seed=5, sampler=sampler_name, num_inference_steps=6, **fields)
    package = ModelPackage.load(tiny_package)
    condition = package.condition(**asked)
    for seed, found in zip((5, 6), pictures(response), strict=True):
        wanted = package.sample(condition, seeds=[seed], plan=package.plan(sampler_name, 6))
        assert np.abs(found.astype(int) - package.rows.from_x(wanted)[0, 0].numpy()).max() <= 1


def test_each_kind_of_guidance_gives_another_picture(api: FastAPI) -> None:
    kinds: list[dict[str, Any]] = [
        {"prompt": "", "guidance": "none"},
        {"guidance": "direct"},
        {"guidance": "classifier_free", "guidance_scale": 5.0},
        {"guidance": "classifier", "guidance_scale": 50.0},
        {"prompt": "", "guidance": "classifier", "label": 2, "guidance_scale": 50.0},
        {"guidance": "clip", "guidance_scale": 50.0},
    ]
    found = {pictures(post(api, seed=5, **fields))[0].tobytes() for fields in kinds}
    assert len(found) == len(kinds)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_setting_of_guidance_changes_the_picture(api: FastAPI, tiny_package: Path, name: str) -> None:
    scale = EXAMPLES[name]["guidance_scale"]
    plain = pictures(post(api, seed=5, num_inference_steps=6, guidance_scale=scale))[0]
    response = post(api, seed=5, num_inference_steps=6, **EXAMPLES[name])
    package = ModelPackage.load(tiny_package)
    condition = package.condition([PROMPT], **EXAMPLES[name])
    wanted = package.rows.from_x(package.sample(condition, seeds=[5], plan=package.plan("ddim", 6)))
    found = pictures(response)[0]
    assert not np.array_equal(found, plain)
    assert np.abs(found.astype(int) - wanted[0, 0].numpy()).max() <= 1
    assert response.json()["settings"][name] == EXAMPLES[name][name]


def test_the_answer_names_version_seed_and_settings(api: FastAPI) -> None:
    answer = post(api, n=2, seed=5, eta=0.5, quality="auto", user="me").json()
    assert answer["settings"] == {
        "model": "tiny",
        "version": "1",
        "seeds": [5, 6],
        "size": "8x8",
        "sampler": "ddim",
        "num_inference_steps": 20,
        "eta": 0.5,
        "guidance": "classifier_free",
        "guidance_scale": 2.0,
        "prompt": PROMPT,
        "without_effect": ["user", "quality"],
    }
    assert [image["seed"] for image in answer["data"]] == [5, 6]
    assert answer["created"] > 1.7e9


def test_a_drawn_seed_gives_the_same_picture_again(api: FastAPI) -> None:
    first = post(api)
    again = post(api, seed=first.json()["data"][0]["seed"])
    assert np.array_equal(pictures(first)[0], pictures(again)[0])
    assert not np.array_equal(pictures(first)[0], pictures(post(api))[0])


def test_a_file_carries_its_own_provenance(api: FastAPI) -> None:
    image = post(api, n=2, seed=5).json()["data"][1]
    text = Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).text[PROVENANCE_KEY]  # type: ignore[attr-defined]
    provenance = json.loads(text)
    assert (provenance["seeds"], provenance["version"], provenance["prompt"]) == ([6], "1", PROMPT)


def test_a_url_is_a_data_url(api: FastAPI) -> None:
    image = post(api, seed=5, response_format="url").json()["data"][0]
    assert "b64_json" not in image
    head, _, data = image["url"].partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(pixels(base64.b64decode(data)), pictures(post(api, seed=5))[0])


def test_faults_of_fields_are_told_with_400_in_openai_s_shape(api: FastAPI) -> None:
    response = post(api, n=0, steps=3)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", "n")
    assert "n: " in error["message"] and "steps: unknown field" in error["message"]


def test_faults_of_meaning_are_told_with_400_too(api: FastAPI) -> None:
    response = post(api, guidance="classifier+clip", size="512x512", label="ten")
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "size")
    assert "this model makes 8x8 only" in error["message"] and "label: " in error["message"]


@pytest.mark.parametrize(
    "options",
    [
        {"content": b"{", "headers": {"content-type": "application/json"}},
        {"content": b'{"prompt": "a"}', "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"json": [1, 2]},
        {},
    ],
)
def test_what_is_no_json_object_is_told_what_to_send(api: FastAPI, options: dict[str, Any]) -> None:
    response = call(api, "POST", "/v1/images/generations", **options)
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


def test_a_picture_that_is_not_finite_is_422_and_the_next_one_is_well(api: FastAPI, replica: Replica) -> None:
    def broken(x_t: Any, level: Any, condition: Any) -> Any:
        prediction = whole(x_t, level, condition)
        return prediction.with_x0(prediction.x0 * float("nan"))

    engine = replica._versions.current.engine._scheduler._engine
    whole = engine.denoiser
    broken.schedule, broken.settings = whole.schedule, whole.settings  # type: ignore[attr-defined]
    engine.denoiser = broken  # type: ignore[assignment]
    try:
        response = post(api)
    finally:
        engine.denoiser = whole
    assert response.status_code == 422
    assert "lower the guidance scale" in response.json()["error"]["message"]
    assert post(api).status_code == 200


def test_another_model_is_404(api: FastAPI) -> None:
    response = post(api, model="dall-e-3")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert call(api, "GET", "/v1/models/dall-e-3").status_code == 404


@pytest.mark.parametrize(
    "model", ["tiny@champoin", "tiny@", "tiny@1", "tiny@challenger", "tiny/1", "TINY", "tiny@champion@x"]
)
def test_an_alias_that_is_not_served_is_404_like_any_unknown_model(api: FastAPI, model: str) -> None:
    if model == "tiny@":
        assert post(api, model=model).status_code == 404
        return
    for stream in (False, True):
        error = post(api, model=model, stream=stream).json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert repr("tiny") in error["message"] or "tiny@champion" in error["message"]
    response = call(api, "GET", f"/v1/models/{model}")
    assert response.status_code == 404


def test_the_served_alias_is_the_model(api: FastAPI) -> None:
    answer = post(api, model="tiny@champion")
    assert (answer.status_code, answer.json()["settings"]["version"]) == (200, "1")
    assert call(api, "GET", "/v1/models/tiny@champion").json()["id"] == "tiny"


def test_models_and_health_name_the_loaded_version(api: FastAPI) -> None:
    card = call(api, "GET", "/v1/models").json()["data"][0]
    assert (card["id"], card["version"], card["sizes"], card["classes"][2]) == ("tiny", "1", ["8x8"], "two")
    assert card["guidance"] == ["none", "direct", "classifier_free", "classifier", "clip"]
    assert call(api, "GET", "/v1/models/tiny").json() == card
    for path in ("/health", "/healthz"):
        assert call(api, "GET", path).json() == {"status": "ok", "model": "tiny", "version": "1"}


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance": "none", "prompt": ""},
        {"guidance": "direct"},
        {"guidance": "clip", "guidance_scale": 200.0, "n": 2},
        {"guidance": "classifier", "prompt": "", "label": "two"},
        {"guidance": "classifier_free+classifier", "clip_scale": 3.0, "classifier_scale": 9.0, "label": 1},
        {"sampler": "ddpm", "eta": 0.5, "quality": "auto"},
        {"sampler": "ddim", "eta": 0.5, "negative_prompt": "a two", "guidance_interval": [0.3, 3.0]},
    ],
)
def test_every_settings_that_is_returned_can_be_sent_back_and_gives_the_same(
    api: FastAPI, fields: dict[str, Any]
) -> None:
    first = post(api, num_inference_steps=6, **fields)
    again = call(api, "POST", "/v1/images/generations", json=first.json()["settings"])
    assert [found.tobytes() for found in pictures(again)] == [found.tobytes() for found in pictures(first)]


def test_joined_guidance_is_the_core_s(api: FastAPI, tiny_package: Path) -> None:
    asked = {
        "guidance": "classifier_free+classifier+clip",
        "guidance_scale": 3.0,
        "classifier_scale": 5.0,
        "clip_scale": 7.0,
    }
    response = post(api, seed=5, num_inference_steps=6, **asked)
    package = ModelPackage.load(tiny_package)
    condition = package.condition([PROMPT], **asked)
    wanted = package.rows.from_x(package.sample(condition, seeds=[5], plan=package.plan("ddim", 6)))
    assert np.abs(pictures(response)[0].astype(int) - wanted[0, 0].numpy()).max() <= 1
    assert not np.array_equal(
        pictures(response)[0], pictures(post(api, seed=5, num_inference_steps=6, guidance_scale=3.0))[0]
    )


def test_tokens_that_the_tower_does_not_read_are_told(api: FastAPI, tiny_package: Path) -> None:
    limit = call(api, "GET", "/v1/models").json()["data"][0]["max_prompt_tokens"]
    tower = ModelPackage.load(tiny_package).clip.text
    assert limit == tower.max_tokens
    fitting = " ".join(["one"] * limit)
    assert tower.count(fitting) == limit
    short = post(api, prompt=fitting, seed=5, num_inference_steps=2).json()["settings"]
    assert "prompt_tokens_cut" not in short
    long = f"{fitting} a two and a three"
    answer = post(api, prompt=long, negative_prompt=long, seed=5, num_inference_steps=2)
    settings = answer.json()["settings"]
    assert (settings["prompt_tokens_cut"], settings["negative_prompt_tokens_cut"]) == (tower.count(long) - limit,) * 2
    assert settings["prompt_tokens_cut"] > 0
    # They change nothing, which is why they are told.
    cut = post(api, prompt=fitting, negative_prompt=fitting, seed=5, num_inference_steps=2)
    assert np.array_equal(pictures(answer)[0], pictures(cut)[0])


def test_answers_carry_what_openai_s_clients_look_for(api: FastAPI) -> None:
    answer = post(api, seed=5, num_inference_steps=1).json()
    assert {name: answer[name] for name in ("size", "output_format", "quality", "background")} == {
        "size": "8x8",
        "output_format": "png",
        "quality": "auto",
        "background": "opaque",
    }
    assert answer["usage"]["total_tokens"] == 0


def test_an_unknown_route_answers_in_openai_s_shape(api: FastAPI) -> None:
    response = call(api, "GET", "/v1/nothing")
    assert response.status_code == 404
    assert "GET /v1/nothing" in response.json()["error"]["message"]


def test_the_openapi_document_names_every_field_and_fault(api: FastAPI) -> None:
    document = call(api, "GET", "/openapi.json").json()
    assert document["info"]["version"] == __version__
    route = document["paths"]["/v1/images/generations"]["post"]
    assert set(route["responses"]) == {"200", "400", "401", "404", "413", "422", "429", "500", "503", "504"}
    fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
    assert "no effect" in fields["quality"]["description"]
    assert all(field.get("description") for field in fields.values())
    parts = document["components"]
    assert parts["securitySchemes"]["key"]["scheme"] == "bearer"
    assert route["security"] == [{"key": []}, {}]
    events = route["responses"]["200"]["content"]["text/event-stream"]["schema"]["$ref"].rpartition("/")[2]
    assert set(parts["schemas"][events]["properties"]) == set(StreamEvent.model_fields)
    assert parts["schemas"]["GenerationRequest"]["examples"][0]["prompt"]
    refs = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert refs <= parts["schemas"].keys()


def test_the_reference_shows_bounds_defaults_answers_and_events(api: FastAPI) -> None:
    page = call(api, "GET", "/docs").text
    for row in (
        "<td><code>n</code></td><td>integer, 1 to 10, default 1</td>",
        "<td><code>guidance_scale</code></td><td>number, at least 0.0</td>",
        "<td><code>settings.seeds</code></td><td>array</td>",
        "<td><code>partial_image_index</code></td>",
    ):
        assert row in page
