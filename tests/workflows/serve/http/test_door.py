"""The door before the service: a burst is refused there, and it knows the room that the service has."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.workflows.serve.conftest import LocalBackend
from workflows.runtime.session import DOOR
from workflows.serve.http.account import Capacity
from workflows.serve.http.door import Door, middleware
from workflows.serve.http.guard import CAPACITY_HEADER, AccessRules
from workflows.serve.http.ingress import http_api
from workflows.serve.http.keys import KeyRing
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.replica.replica import Replica

PATH = "/v1/images/generations"
BODY = {"prompt": "a handwritten one", "num_inference_steps": 4}


class Slow:
    """A service that holds every request for pictures until it is told to answer."""

    def __init__(self, capacity: Capacity) -> None:
        self._header = (CAPACITY_HEADER.encode(), json.dumps({"tiny": capacity.plain()}).encode())
        self.go = asyncio.Event()
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            self.bodies.append(body)
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [self._header]})
        await send({"type": "http.response.body", "body": b"{}"})


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


def test_a_burst_of_2000_is_refused_at_once_and_in_shape() -> None:
    async def burst() -> tuple[list[httpx.Response], float]:
        slow = Slow(Capacity(rows=256, seconds=300.0, pace=0.0005))
        async with client(Door(slow)) as http:
            await http.get("/v1/models")
            asked = [asyncio.create_task(http.post(PATH, json=BODY)) for _ in range(2000)]
            started = time.monotonic()
            refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            while len(refused) < 2000 - 256:
                refused, _ = await asyncio.wait(asked, timeout=0.05)
                assert time.monotonic() - started < 60
            slow.go.set()
            return list(await asyncio.gather(*asked)), len(slow.bodies)

    answers, num_passed = asyncio.run(burst())
    refused = [answer for answer in answers if answer.status_code != 200]
    assert (num_passed, len(refused)) == (256, 1744)
    assert {answer.status_code for answer in refused} == {429}
    # 256 rows of four steps at two evaluations: a second.
    assert {answer.headers["retry-after"] for answer in refused} <= {"1", "2"}
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    assert "256 pictures wait" in refused[0].json()["error"]["message"]


def test_what_is_let_in_arrives_as_it_was_and_its_place_is_free_again() -> None:
    async def ask() -> tuple[list[int], list[bytes], bool]:
        slow = Slow(Capacity(rows=1, seconds=300.0))
        slow.go.set()
        async with client(Door(slow)) as http:
            answers = [await http.post(PATH, json=BODY) for _ in range(3)]
            # A body that is too large to be read, a form, and no JSON pass as they are.
            for content, kind in (
                (b" " * 200_000, "application/json"),
                (b"form", "multipart/form-data"),
                (b"{", "json"),
            ):
                answers.append(await http.post(PATH, content=content, headers={"content-type": kind}))
        told = any(CAPACITY_HEADER in answer.headers for answer in answers)
        return [answer.status_code for answer in answers], slow.bodies, told

    statuses, bodies, told = asyncio.run(ask())
    assert statuses == [200] * 6
    assert [json.loads(body) for body in bodies[:3]] == [BODY] * 3
    assert bodies[3:] == [b" " * 200_000, b"form", b"{"]
    assert not told


def test_another_application_behind_the_same_proxy_has_an_account_of_its_own() -> None:
    async def ask() -> list[int]:
        slow = Slow(Capacity(rows=1, seconds=300.0))
        async with client(Door(slow)) as http:
            await http.get("/one/v1/models")
            first = asyncio.create_task(http.post(f"/one{PATH}", json=BODY))
            other = asyncio.create_task(http.post(f"/two{PATH}", json=BODY))
            while len(slow.bodies) < 2:
                await asyncio.sleep(0)
            second = await http.post(f"/one{PATH}", json=BODY)
            slow.go.set()
            return [(await first).status_code, (await other).status_code, second.status_code]

    assert asyncio.run(ask()) == [200, 200, 429]


def test_the_real_service_tells_the_door_what_it_can(replica: Replica) -> None:
    rules = AccessRules(KeyRing(()), "never")
    api = http_api({"tiny": LocalBackend(replica)}, rules, IngressMetrics(["tiny"]), Capacity(rows=2, seconds=300.0))
    door = Door(api)

    async def ask() -> list[httpx.Response]:
        async with client(door) as http:
            models = await http.get("/v1/models")
            direct = await client(api).get("/v1/models")
            crowd = [http.post(PATH, json=BODY | {"num_inference_steps": 100}) for _ in range(6)]
            return [models, direct, *await asyncio.gather(*crowd)]

    models, direct, *crowd = asyncio.run(ask())
    assert all(CAPACITY_HEADER not in answer.headers for answer in (models, direct))
    assert sorted(answer.status_code for answer in crowd) == [200] * 2 + [429] * 4
    capacity = door._accounts[""]["tiny"].capacity
    assert capacity.rows == 2 and capacity.pace > 0
    assert all(len(account) == 0 for account in door._accounts[""].values())


def test_without_the_door_the_ingress_refuses_by_itself(replica: Replica) -> None:
    rules = AccessRules(KeyRing(()), "never")
    api = http_api({"tiny": LocalBackend(replica)}, rules, IngressMetrics(["tiny"]), Capacity(rows=2, seconds=300.0))

    async def ask() -> list[httpx.Response]:
        async with client(api) as http:
            return list(
                await asyncio.gather(*(http.post(PATH, json=BODY | {"num_inference_steps": 100}) for _ in range(6)))
            )

    crowd = asyncio.run(ask())
    assert sorted(answer.status_code for answer in crowd) == [200] * 2 + [429] * 4
    refused = next(answer for answer in crowd if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "overloaded"


def test_ray_serve_takes_the_door_into_its_proxy() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = await receive()
        assert message

    assert list(DOOR.values()) == [f"{middleware.__module__}:{middleware.__name__}"]
    made = validate_http_proxy_callback_return(middleware())
    assert isinstance(made[0].cls(app, *made[0].args, **made[0].kwargs), Door)


@pytest.mark.parametrize("body", [b"[]", b"null", b"\xff", b'{"model": 3, "n": []}'])
def test_no_body_is_too_strange_for_it(body: bytes) -> None:
    async def ask() -> int:
        slow = Slow(Capacity(rows=1, seconds=300.0))
        slow.go.set()
        async with client(Door(slow)) as http:
            await http.get("/v1/models")
            return (await http.post(PATH, content=body, headers={"content-type": "application/json"})).status_code

    assert asyncio.run(ask()) == 200
