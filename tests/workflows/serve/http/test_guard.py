"""What is let through to the routes: who asks, from where, and how much."""

from __future__ import annotations

import asyncio
import json
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


def ask(
    api: FastAPI, method: str, path: str, client: str = "127.0.0.1", base: str = "http://localhost:8000", **options: Any
) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(api, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url=base) as http:
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


def test_a_refused_request_is_one_line_and_is_counted(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, key: tuple[str, KeyRing]
) -> None:
    counted: list[int] = []
    lines: list[str] = []
    metrics = IngressMetrics(["tiny"])
    monkeypatch.setattr(metrics, "request_refused", counted.append)
    monkeypatch.setattr("workflows.serve.http.router._LOG.info", lambda form, text: lines.append(form % text))
    rules = AccessRules(key[1], max_body_bytes=300)
    api, headers = http_api({"tiny": LocalBackend(replica)}, rules, metrics), {"authorization": f"Bearer {key[0]}"}
    path = "/v1/images/generations"
    assert ask(api, "POST", path, json=BODY).status_code == 401
    assert ask(api, "POST", path, json=BODY | {"user": "x" * 400}, headers=headers).status_code == 413
    assert ask(api, "POST", path, content=b"{", headers=headers).status_code == 400
    assert ask(api, "POST", path, json=BODY | {"model": "other"}, headers=headers).status_code == 404
    assert ask(api, "GET", "/nothing", headers=headers).status_code == 404
    assert counted == [401, 413, 400, 404, 404]
    assert [(line["event"], line["status"]) for line in map(json.loads, lines)] == [("refused", it) for it in counted]
    # A fault that the model finds is recorded by the route, as every request that reached a model, and once.
    assert ask(api, "POST", path, json=BODY | {"size": "9x9"}, headers=headers).status_code == 400
    assert (len(counted), len(lines)) == (5, 6)
    assert json.loads(lines[-1])["event"] == "pictures"
    assert ask(api, "POST", path, json=BODY, headers=headers).status_code == 200
    assert (len(counted), len(lines)) == (5, 7)


def test_more_requests_than_are_held_open_are_refused_in_shape(made: Callable[..., FastAPI]) -> None:
    api = made(max_requests=2)

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(api, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asked = [http.post("/v1/images/generations", json=BODY) for _ in range(5)]
            return list(await asyncio.gather(*asked, http.get("/healthz")))

    *answers, health = asyncio.run(crowd())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    assert health.status_code == 200


@pytest.mark.parametrize(
    ("base", "origin", "status"),
    [
        ("http://127.0.0.1:8000", None, 200),
        ("http://localhost", None, 200),
        ("http://[::1]:8000", "http://[::1]:8000", 200),
        ("http://evil.example", None, 400),
        ("http://localhost.evil.example:8000", None, 400),
        ("http://127.0.0.1:8000", "http://evil.example", 400),
        ("http://127.0.0.1:8000", "null", 400),
        ("http://127.0.0.1:8000", "http://localhost:8000", 200),
    ],
)
def test_without_a_key_only_the_names_of_this_machine_are_answered(
    made: Callable[..., FastAPI], base: str, origin: str | None, status: int
) -> None:
    api, headers = made(), {} if origin is None else {"origin": origin}
    response = ask(api, "POST", "/v1/images/generations", base=base, json=BODY, headers=headers)
    assert response.status_code == status
    if status == 400:
        assert ask(api, "GET", "/", base=base, headers=headers).status_code == 400
        assert "serve.allowed_hosts" in response.json()["error"]["message"]
    assert ask(api, "GET", "/healthz", base=base).status_code == 200


def test_other_names_are_answered_where_they_are_allowed_or_clients_need_keys(
    made: Callable[..., FastAPI], key: tuple[str, KeyRing]
) -> None:
    asked = {"base": "http://evil.example", "json": BODY}
    path = "/v1/images/generations"
    headers = {"authorization": f"Bearer {key[0]}"}
    assert ask(made(key[1]), "POST", path, headers=headers, **asked).status_code == 200
    assert ask(made(key[1], allowed_hosts=("own.example",)), "POST", path, headers=headers, **asked).status_code == 400
    for allowed in ("evil.example", "*"):
        assert ask(made(allowed_hosts=(allowed,)), "POST", path, **asked).status_code == 200


def test_pages_of_the_named_sites_may_ask(replica: Replica, key: tuple[str, KeyRing]) -> None:
    site = "https://shop.example"
    rules = AccessRules(key[1])
    api = http_api({"tiny": LocalBackend(replica)}, rules, IngressMetrics(["tiny"]), cors_origins=(site,))
    asks = {"origin": site, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    before = ask(api, "OPTIONS", "/v1/images/generations", headers=asks)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, site)
    headers = {"origin": site, "authorization": f"Bearer {key[0]}"}
    answer = ask(api, "POST", "/v1/images/generations", json=BODY, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, site)
    other = ask(api, "OPTIONS", "/v1/images/generations", headers=asks | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    # Also where the service trusts its own machine.
    open_api = http_api(
        {"tiny": LocalBackend(replica)}, AccessRules(KeyRing(())), IngressMetrics(["tiny"]), cors_origins=(site,)
    )
    assert ask(open_api, "POST", "/v1/images/generations", json=BODY, headers={"origin": site}).status_code == 200


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/v1/models/tiny"])
def test_head_works_where_get_does(made: Callable[..., FastAPI], path: str) -> None:
    api = made(require_key="never")
    found, head = ask(api, "GET", path), ask(api, "HEAD", path)
    assert (found.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == found.headers["content-type"]


def test_the_page_is_found_below_a_prefix_without_its_slash(made: Callable[..., FastAPI]) -> None:
    async def get(path: str) -> httpx.Response:
        # As Ray Serve does for an application at /img.
        transport = httpx.ASGITransport(made(require_key="never"), root_path="/img")
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.get(path)

    bare = asyncio.run(get("/img"))
    assert (bare.status_code, httpx.URL("http://service/img").join(bare.headers["location"])) == (
        307,
        "http://service/img/",
    )
    assert "raverse" in asyncio.run(get("/img/")).text
    document = asyncio.run(get("/img/openapi.json")).json()
    assert httpx.URL("http://service/img/openapi.json").join(document["servers"][0]["url"]) == "http://service/img/"
