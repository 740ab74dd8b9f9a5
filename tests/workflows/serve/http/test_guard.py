"""What is let through to the routes: who asks, from where, and how much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.workflows.serve.conftest import LocalBackend
from workflows.serve.http.guard import AccessRules, is_loopback
from workflows.serve.http.ingress import http_api
from workflows.serve.http.keys import VARIABLE, KeyRing, load_keys, new_key
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.replica.replica import Replica

PATHS = ("/", "/docs", "/openapi.json", "/health", "/healthz")
BODY = {"prompt": "a handwritten one", "num_inference_steps": 1}


def ask(api: FastAPI, method: str, path: str, client: str = "127.0.0.1", **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(api, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.request(method, path, **options)

    return asyncio.run(send())


@pytest.fixture(scope="module")
def made(replica: Replica) -> Callable[..., FastAPI]:
    def make(keys: KeyRing | None = None, **rules: Any) -> FastAPI:
        return http_api(
            {"tiny": LocalBackend(replica)}, AccessRules(keys or KeyRing(()), **rules), IngressMetrics(["tiny"])
        )

    return make


@pytest.fixture(scope="module")
def key() -> tuple[str, KeyRing]:
    key, line = new_key("alice")
    return key, KeyRing(load_keys(None, {VARIABLE: line}))


def test_without_keys_only_this_machine_is_answered(made: Callable[..., FastAPI]) -> None:
    api = made()
    assert ask(api, "POST", "/v1/images/generations", json=BODY).status_code == 200
    for client in ("10.0.0.7", "2001:db8::1", ""):
        response = ask(api, "POST", "/v1/images/generations", client=client, json=BODY)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


def test_with_keys_everybody_needs_one(made: Callable[..., FastAPI], key: tuple[str, KeyRing]) -> None:
    api, headers = made(key[1]), {"authorization": f"Bearer {key[0]}"}
    for client in ("127.0.0.1", "10.0.0.7"):
        assert ask(api, "POST", "/v1/images/generations", client, json=BODY).status_code == 401
        assert ask(api, "POST", "/v1/images/generations", client, json=BODY, headers=headers).status_code == 200
    assert ask(api, "GET", "/v1/models").status_code == 401
    assert ask(api, "GET", "/v1//models").status_code == 401


def test_always_needs_a_key_and_never_needs_none(made: Callable[..., FastAPI], key: tuple[str, KeyRing]) -> None:
    assert ask(made(require_key="always"), "GET", "/v1/models").status_code == 401
    assert ask(made(key[1], require_key="never"), "GET", "/v1/models", "10.0.0.7").status_code == 200


def test_the_check_answers_this_machine_without_its_key(made: Callable[..., FastAPI], key: tuple[str, KeyRing]) -> None:
    api = made(key[1], require_key="loopback_only")
    assert ask(api, "GET", "/v1/models").status_code == 200
    assert ask(api, "GET", "/v1/models", "10.0.0.7").status_code == 401


@pytest.mark.parametrize("path", PATHS)
def test_page_reference_and_health_are_open(made: Callable[..., FastAPI], path: str) -> None:
    assert ask(made(require_key="always"), "GET", path, "10.0.0.7").status_code == 200


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/nowhere"])
def test_every_answer_has_the_headers_that_keep_browsers_safe(made: Callable[..., FastAPI], path: str) -> None:
    for rules in ({}, {"require_key": "always"}):
        headers = ask(made(**rules), "GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]


def test_a_body_beyond_the_limit_is_413_whatever_its_headers_say(made: Callable[..., FastAPI]) -> None:
    api = made(max_body_bytes=1000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    for content in (b"x" * 1001, chunks()):
        response = ask(api, "POST", "/v1/images/generations", content=content, headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert ask(api, "POST", "/v1/images/generations", json=BODY).status_code == 200


def test_a_fault_of_ours_shows_no_trace(made: Callable[..., FastAPI]) -> None:
    class Broken:
        def generate(self, request: object) -> None:
            raise RuntimeError("/secret/place")

    api = http_api({"tiny": Broken()}, AccessRules(KeyRing(()), "never"), IngressMetrics(["tiny"]))  # type: ignore[dict-item]

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.post("/v1/images/generations", json=BODY)

    response = asyncio.run(send())
    assert response.status_code == 500
    assert "secret" not in response.text and "Traceback" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.7", False),
        ("example.org", False),
        ("", False),
        (None, False),
    ],
)
def test_what_is_this_machine(host: str | None, own: bool) -> None:
    assert is_loopback(host) is own
