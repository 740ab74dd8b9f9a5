"""The whole service: real Ray Serve, real HTTP, a real registry, the unmodified client of OpenAI."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import ray
from numpy.typing import NDArray
from PIL import Image
from ray import serve

from tests.workflows.serve.conftest import DASHBOARD, check_inputs
from workflows.config.schema import RunConfig, ServeConfig
from workflows.errors import AddressInUse, ModelNotFound, StageFailed
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.serve.app import APP_NAME
from workflows.serve.check import APP_NAME as CHECK_NAME
from workflows.serve.check import check_service
from workflows.serve.host import hosted

PROMPT = "a handwritten one"


def pixels(data: str) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(np.int16)


def picture(response: httpx.Response) -> NDArray[np.int16]:
    assert response.status_code == 200, response.text
    return pixels(response.json()["data"][0]["b64_json"])


def until(condition: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def client(service: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0)


def test_the_openai_client_draws(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt=PROMPT, model="tiny", n=2, size="auto", response_format="b64_json", user="me"
    )
    assert answer.data is not None
    found = [pixels(image.b64_json or "") for image in answer.data]
    assert [image.shape for image in found] == [(8, 8), (8, 8)]
    assert not np.array_equal(found[0], found[1])


def test_the_openai_client_streams_partial_images(client: openai.OpenAI) -> None:
    extra = {"seed": 11, "num_inference_steps": 20}
    told = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body=extra))
    assert [event.type for event in told] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    whole = client.images.generate(prompt=PROMPT, extra_body=extra)
    assert whole.data is not None
    assert told[-1].b64_json == whole.data[0].b64_json


def test_the_openai_client_edits(client: openai.OpenAI) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(file, "PNG")
    answer = client.images.edit(image=file.getvalue(), prompt=PROMPT, extra_body={"strength": 0.1, "seed": 3})
    assert answer.data is not None
    assert np.abs(pixels(answer.data[0].b64_json or "") - 200).mean() < 60


def test_a_stream_that_is_left_takes_its_rows_along(service: Any) -> None:
    before = service.load()
    body = {"prompt": PROMPT, "n": 10, "num_inference_steps": 100, "stream": True, "preview_every": 1}
    with httpx.stream("POST", f"{service.url}/v1/images/generations", json=body, timeout=30) as response:
        next(response.iter_lines())
    assert until(lambda: service.load().rows == 0), service.load()
    assert service.load().finished < before.finished + 10


def test_the_page_and_the_reference_are_served(service: Any) -> None:
    for path, text in (("/", "Compare scales"), ("/docs", "/v1/images/edits"), ("/openapi.json", "EditForm")):
        response = httpx.get(service.url + path, timeout=30)
        assert (response.status_code, text in response.text) == (200, True)
        assert "content-security-policy" in response.headers


def test_the_openai_client_passes_our_fields_and_reads_the_settings(client: openai.OpenAI) -> None:
    extra = {"guidance": "clip", "guidance_scale": 4.0, "sampler": "ddpm", "num_inference_steps": 3, "seed": 11}
    answer = client.images.generate(prompt=PROMPT, extra_body=extra)
    settings = answer.model_extra["settings"] if answer.model_extra else {}
    assert {name: settings[name] for name in extra if name != "seed"} == {k: v for k, v in extra.items() if k != "seed"}
    assert settings["seeds"] == [11]
    assert settings["version"] == "1"


def test_the_openai_client_lists_and_retrieves_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "raverse"


def test_the_openai_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.generate(prompt=PROMPT, size="1024x1024")
    assert (bad.value.param, bad.value.type) == ("size", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="style: "):
        client.images.generate(prompt=PROMPT, style="natural")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=PROMPT, model="dall-e-3")


def mixed_requests() -> list[dict[str, Any]]:
    kinds: list[dict[str, Any]] = [
        {"prompt": "", "guidance": "none"},
        {"guidance": "direct"},
        {"guidance_scale": 3.0, "negative_prompt": "a two"},
        {"guidance": "classifier"},
        {"prompt": "", "guidance": "classifier", "label": "two"},
        {"guidance": "clip"},
    ]
    samplers: list[dict[str, Any]] = [{"sampler": "ddim", "eta": 0.5}, {"sampler": "ddpm"}, {"sampler": "dpm_solver"}]
    mixed = [kind | sampler for kind in kinds for sampler in samplers]
    return [fields | {"seed": place, "num_inference_steps": 3 + 2 * place} for place, fields in enumerate(mixed)]


def test_a_seed_gives_the_same_picture_alone_and_in_a_crowd_beside_bad_requests(service: Any) -> None:
    requests = mixed_requests()
    alone = [picture(service.post(**fields)) for fields in requests]
    bad: list[dict[str, Any]] = [{"n": 0}, {"label": 99, "guidance": "classifier"}, {"prompt": None}, {"bogus": 1}]
    with ThreadPoolExecutor(len(requests) + len(bad)) as pool:
        answers = list(pool.map(lambda fields: service.post(**fields), requests + bad))
    for found, wanted in zip(answers, alone, strict=False):
        assert np.abs(picture(found) - wanted).max() <= 1
    assert [answer.status_code for answer in answers[len(requests) :]] == [400] * len(bad)
    assert not np.array_equal(alone[0], alone[1])


def test_rows_leave_with_their_client(service: Any) -> None:
    before = service.load()
    body = {"prompt": PROMPT, "n": 10, "num_inference_steps": 100, "guidance": "clip"}

    async def leave_once_the_rows_are_in() -> None:
        async with httpx.AsyncClient(timeout=None) as client:
            answer = asyncio.create_task(client.post(f"{service.url}/v1/images/generations", json=body))
            assert await asyncio.to_thread(until, lambda: service.load().rows == 10), service.load()
            assert not answer.done()
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer

    asyncio.run(leave_once_the_rows_are_in())
    assert until(lambda: service.load().cancelled == before.cancelled + 10), service.load()
    assert (service.load().rows, service.load().finished) == (0, before.finished)


def test_rows_of_a_client_who_stays_are_finished(service: Any) -> None:
    before = service.load()
    assert service.post(n=3).status_code == 200
    after = service.load()
    assert (after.finished - before.finished, after.cancelled - before.cancelled, after.rows) == (3, 0, 0)


def test_a_full_queue_answers_429_and_when_to_come_back(service: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.post(n=10, num_inference_steps=100), range(8)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < len(answers)
    for answer in refused:
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_request_id_is_echoed_and_other_headers_are_ignored(service: Any) -> None:
    headers = {"x-request-id": "mine", "x-stainless-lang": "python", "authorization": "bearer whatever"}
    response = httpx.get(f"{service.url}/healthz", headers=headers, timeout=30)
    assert response.json() == {"status": "ok", "model": "tiny", "version": "1"}
    assert response.headers["x-request-id"] == "mine"


def test_a_broken_body_is_400_over_http_too(service: Any) -> None:
    response = httpx.post(f"{service.url}/v1/images/generations", content=b"{", timeout=30)
    assert response.status_code == 400
    assert json.loads(response.text)["error"]["type"] == "invalid_request_error"


@pytest.fixture(scope="module")
def checked(
    service: Any, tiny_config: RunConfig, tiny_artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The serve-check stage beside the service, as on a cluster that serves something already."""
    config = tiny_config.model_copy(update={"serve": ServeConfig(port=httpx.URL(service.url).port or 0)})
    folder, inputs = tmp_path_factory.mktemp("check"), check_inputs(config, tiny_artifacts["data"])
    return folder, check_service(config, inputs, folder, Progress.silent())


def test_every_kind_of_guidance_answers_the_check_with_every_sampler(checked: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = checked
    answers = json.loads((folder / "service.json").read_text())["answers"]
    assert len(answers) == metrics["requests"] == 12
    asked = {(a["request"]["guidance"], "label" in a["request"], a["request"]["sampler"]) for a in answers}
    kinds = {(g, False) for g in ("none", "direct", "classifier_free", "classifier", "clip")} | {("classifier", True)}
    assert asked == {(*kind, sampler) for kind in kinds for sampler in ("ddpm", "ddim")}
    assert {(answer["status"], answer["version"], answer["seed"]) for answer in answers} == {(200, "1", 7)}


def test_every_picture_of_the_check_is_there(checked: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = checked
    answers = json.loads((folder / "service.json").read_text())["answers"]
    sizes = {Image.open(folder / answer["picture"]).size for answer in answers}
    assert sizes == {(8, 8)}
    assert len({(folder / answer["picture"]).read_bytes() for answer in answers}) == 12


def test_the_check_leaves_nothing_running_and_harms_no_other(
    checked: tuple[Path, dict[str, Any]], service: Any
) -> None:
    """A Serve that the check starts itself ends with it, as `test_command.py` sees of the same code."""
    assert set(serve.status().applications) == {APP_NAME}
    assert httpx.get(f"{service.url}/{CHECK_NAME}/healthz", timeout=30).status_code == 404
    assert service.post().status_code == 200


class Broken:
    def __init__(self) -> None:
        raise ModelNotFound("no model 'nobody@champion'")


def test_an_application_that_does_not_start_says_why_and_harms_no_other(service: Any) -> None:
    broken = serve.deployment(Broken, ray_actor_options={"num_cpus": 0}).bind()
    config = ServeConfig(port=httpx.URL(service.url).port or 0)
    with (
        pytest.raises(StageFailed, match=r"did not start .*ModelNotFound: no model 'nobody@champion'"),
        hosted(config, broken, "broken", "/broken"),
    ):
        pass
    assert set(serve.status().applications) == {APP_NAME}
    assert service.post().status_code == 200


def test_a_serve_at_another_address_is_told(service: Any) -> None:
    with pytest.raises(AddressInUse, match="runs on this cluster already"), hosted(ServeConfig(port=1), None, "x"):  # type: ignore[arg-type]
        pass
    assert service.post().status_code == 200


def test_every_series_that_the_dashboard_queries_is_in_the_live_metrics(service: Any) -> None:
    assert service.post(stream=True, partial_images=1).status_code == 200
    node = ray.nodes()[0]
    exporter = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = set(re.findall(r"ray_raverse_\w+", DASHBOARD.read_text()))

    def missing() -> set[str]:
        return wanted - set(re.findall(r"^ray_raverse_\w+", httpx.get(exporter, timeout=30).text, re.MULTILINE))

    # Ray collects every ten seconds; the series of the tests before are there.
    assert until(lambda: not missing()), missing()
