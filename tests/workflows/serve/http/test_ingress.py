"""The routes, over a real replica in this process: no Ray, no socket."""

from __future__ import annotations

import asyncio
import base64
import io
import json
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
    response = post(api, size="512x512", label="one")
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


def test_models_and_health_name_the_loaded_version(api: FastAPI) -> None:
    card = call(api, "GET", "/v1/models").json()["data"][0]
    assert (card["id"], card["version"], card["sizes"], card["classes"][2]) == ("tiny", "1", ["8x8"], "two")
    assert card["guidance"] == ["none", "direct", "classifier_free", "classifier", "clip"]
    assert call(api, "GET", "/v1/models/tiny").json() == card
    for path in ("/health", "/healthz"):
        assert call(api, "GET", path).json() == {"status": "ok", "model": "tiny", "version": "1"}


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
