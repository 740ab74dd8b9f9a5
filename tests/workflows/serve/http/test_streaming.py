"""Server-sent events: previews at the right steps, then the pictures; errors as statuses or as events."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ray.serve.exceptions import RequestCancelledError

from tests.workflows.serve.conftest import LocalBackend
from workflows.serve.http.guard import AccessRules
from workflows.serve.http.ingress import http_api
from workflows.serve.http.keys import KeyRing
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.replica.replica import Replica
from workflows.serve.request.messages import SamplerRequest
from workflows.serve.request.pictures import Generated
from workflows.serve.request.resolve import preview_points
from workflows.serve.request.schema import GenerationRequest

PROMPT = "a handwritten one"


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest.model_validate({"prompt": PROMPT, "stream": True, **fields})


@pytest.mark.parametrize(
    ("fields", "num_steps", "points"),
    [
        ({}, 20, ()),
        ({"partial_images": 0}, 20, ()),
        ({"partial_images": 1}, 20, (10,)),
        ({"partial_images": 3}, 20, (15, 10, 5)),
        ({"partial_images": 3}, 2, (1,)),
        ({"partial_images": 3}, 1, ()),
        ({"preview_every": 6}, 20, (14, 8, 2)),
        ({"preview_every": 20}, 20, ()),
        ({"preview_every": 1}, 3, (2, 1)),
    ],
)
def test_previews_are_spread_over_the_steps(fields: dict[str, Any], num_steps: int, points: tuple[int, ...]) -> None:
    assert preview_points(request(**fields), num_steps) == points


def test_nothing_is_shown_without_a_stream() -> None:
    assert preview_points(request(stream=False), 20) == ()


@pytest.fixture
def stream(api: FastAPI, ask: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    def send(**fields: object) -> httpx.Response:
        return ask(api, "POST", "/v1/images/generations", json={"prompt": PROMPT, "stream": True, **fields})

    return send


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told.get('type', 'error')}"
        found.append(told)
    return found


def test_previews_come_before_the_picture_which_is_the_one_without_a_stream(
    stream: Callable[..., httpx.Response],
) -> None:
    told = events(stream(seed=5, num_inference_steps=20, partial_images=3, sampler="ddpm"))
    assert [event["type"].rpartition(".")[2] for event in told] == ["partial_image"] * 3 + ["completed"]
    assert [event.get("partial_image_index") for event in told] == [0, 1, 2, None]
    assert [event["step"] for event in told] == [5, 10, 15, 20]
    assert len({event["b64_json"] for event in told}) == 4
    whole = stream(seed=5, num_inference_steps=20, stream=False, sampler="ddpm").json()
    assert told[-1]["b64_json"] == whole["data"][0]["b64_json"]
    assert told[-1]["settings"] == whole["settings"]


def test_every_picture_of_a_request_ends(stream: Callable[..., httpx.Response]) -> None:
    told = events(stream(seed=5, n=6, num_inference_steps=8, preview_every=4))
    ended = [event["seed"] for event in told if event["type"].endswith("completed")]
    assert ended == [5, 6, 7, 8, 9, 10]
    assert base64.b64decode(told[0]["b64_json"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"preview_every": 2, "partial_images": 2}, "preview_every"),
        ({"size": "9x9"}, "size"),
    ],
)
def test_a_fault_before_the_first_event_is_a_status(
    stream: Callable[..., httpx.Response], fields: dict[str, Any], param: str
) -> None:
    response = stream(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_fault_after_the_first_event_is_an_event_and_counted_as_the_fault(
    stream: Callable[..., httpx.Response], replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("workflows.serve.http.router._LOG.info", lambda form, text: lines.append(form % text))
    engine = replica._versions.current.engine._scheduler._engine
    whole, calls = engine.denoiser, []

    def breaking(x_t: Any, level: Any, condition: Any) -> Any:
        calls.append(level)
        prediction = whole(x_t, level, condition)
        return prediction if len(calls) < 6 else prediction.with_x0(prediction.x0 * float("nan"))

    breaking.schedule, breaking.settings = whole.schedule, whole.settings  # type: ignore[attr-defined]
    engine.denoiser = breaking  # type: ignore[assignment]
    try:
        told = events(stream(preview_every=2, num_inference_steps=20))
    finally:
        engine.denoiser = whole
    assert [event.get("type") for event in told[:-1]] == ["image_generation.partial_image"] * 2
    assert "lower the guidance scale" in told[-1]["error"]["message"]
    assert [json.loads(line)["status"] for line in lines] == [422]


def test_a_stream_that_is_left_is_counted_as_left_and_its_rows_leave(
    api: FastAPI, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("workflows.serve.http.router._LOG.info", lambda form, text: lines.append(form % text))
    body = json.dumps({"prompt": PROMPT, "stream": True, "preview_every": 1, "num_inference_steps": 50}).encode()

    async def leave_after_the_first_event() -> None:
        left, asked = asyncio.Event(), iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            if (message := next(asked, None)) is not None:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                left.set()

        scope = {"type": "http", "method": "POST", "path": "/v1/images/generations", "query_string": b""}
        headers = [(b"content-type", b"application/json")]
        await api({**scope, "headers": headers, "client": ("127.0.0.1", 1), "scheme": "http"}, receive, send)

    asyncio.run(leave_after_the_first_event())
    assert [json.loads(line)["status"] for line in lines] == [499]
    until = time.monotonic() + 20
    while replica._versions.current.engine.load.rows and time.monotonic() < until:
        time.sleep(0.01)
    assert replica._versions.current.engine.load.rows == 0


@pytest.mark.parametrize("way", ["cancelled", "broken"])
def test_a_client_that_leaves_a_stream_is_no_error_and_one_line(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Ray tells it by an error of its own in the middle of the stream; uvicorn by an error of `send`."""

    class Leaving(LocalBackend):
        async def generate(self, request: SamplerRequest) -> AsyncGenerator[Generated, None]:
            async for pictures in super().generate(request):
                yield pictures
                if way == "cancelled":
                    raise RequestCancelledError

    lines: list[str] = []
    monkeypatch.setattr("workflows.serve.http.router._LOG.info", lambda form, text: lines.append(form % text))
    troubles: list[object] = []
    for level in ("warning", "error", "exception"):
        monkeypatch.setattr(logging.getLogger("ray.serve"), level, lambda *told, **_: troubles.append(told))
    api = http_api({"tiny": Leaving(replica)}, AccessRules(KeyRing(()), "never"), IngressMetrics(["tiny"]))
    body = json.dumps({"prompt": PROMPT, "stream": True, "preview_every": 1, "num_inference_steps": 50}).encode()
    sent: list[bytes] = []

    async def leave() -> None:
        asked = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            if (message := next(asked, None)) is not None:
                return message
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: Any) -> None:
            if message.get("body"):
                sent.append(message["body"])
                if way == "broken":
                    raise OSError("the connection is gone")

        scope = {"type": "http", "method": "POST", "path": "/v1/images/generations", "query_string": b""}
        scope |= {"client": ("127.0.0.1", 1), "scheme": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
        await api({**scope, "headers": [(b"content-type", b"application/json")]}, receive, send)

    asyncio.run(leave())
    assert [json.loads(line)["status"] for line in lines] == [499]
    assert len(sent) == 1 and b"error" not in sent[0]
    assert troubles == []


def test_a_deadline_that_passes_is_504_and_the_rows_leave(
    stream: Callable[..., httpx.Response], replica: Replica
) -> None:
    # Rows of the tests before may still be there, and their steps would be learned again.
    until = time.monotonic() + 20
    while replica._versions.current.engine.load.rows and time.monotonic() < until:
        time.sleep(0.01)
    replica._versions.current.engine._scheduler._times._seconds.clear()
    response = stream(stream=False, n=10, num_inference_steps=100, deadline_seconds=0.01)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert replica._versions.current.engine.load.rows == 0


def test_a_deadline_that_cannot_be_met_is_refused_at_once(stream: Callable[..., httpx.Response]) -> None:
    assert stream(stream=False, n=4, num_inference_steps=20).status_code == 200
    response = stream(stream=False, n=10, num_inference_steps=100, deadline_seconds=0.001)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "deadline_seconds")
    assert "retry-after" not in response.headers
    assert stream(stream=False, num_inference_steps=2, deadline_seconds=30).status_code == 200
