"""A call goes on elsewhere when its replica is lost; over handles that fail, to real samplers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from workflows.errors import EngineStopped, InvalidRequest
from workflows.serve.http.dispatch import SamplerBackend, finished
from workflows.serve.replica.metrics import IngressMetrics
from workflows.serve.replica.replica import Sampler
from workflows.serve.request.messages import Call, Event, Kept, Preview
from workflows.serve.request.pictures import Generated
from workflows.serve.request.schema import GenerationRequest


class Handle:
    """A deployment handle whose replica dies after so many events, once per number in the list."""

    def __init__(self, sampler: Sampler, dies_after: list[int]) -> None:
        self._sampler, self._dies_after = sampler, dies_after
        self.calls: list[Call] = []
        self.cancelled, self.left = 0, list[str]()
        self.draw = self

    def options(self, **options: Any) -> Handle:
        assert options == {"stream": True}
        return self

    def remote(self, call: Call) -> Stream:
        self.calls.append(call)
        count = self._dies_after.pop(0) if self._dies_after else None
        return Stream(self, self._events(call, count))

    def broadcast(self, method: str, request_id: str) -> Broadcast:
        assert method == "leave"
        return Broadcast(self, request_id)

    async def _events(self, call: Call, count: int | None) -> AsyncGenerator[Event, None]:
        made = 0
        async for event in self._sampler.draw(call):
            if count is not None and made >= count:
                raise ActorDiedError
            made += 1
            yield event


class Broadcast:
    """As Serve's: sent when its results are asked for, not before."""

    def __init__(self, handle: Handle, request_id: str) -> None:
        self._handle, self._request_id = handle, request_id

    async def results_async(self, *, return_exceptions: bool) -> list[None]:
        assert return_exceptions
        self._handle.left.append(self._request_id)
        return [None]


class Stream:
    def __init__(self, handle: Handle, events: AsyncGenerator[Event, None]) -> None:
        self._handle, self._events = handle, events

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events

    def cancel(self) -> None:
        self._handle.cancelled += 1


@pytest.fixture
def often_kept(sampler: Sampler) -> Sampler:
    sampler._args = sampler._args.model_copy(update={"keep_seconds": 1e-6})
    return sampler


def call(**fields: object) -> Call:
    given = {"prompt": "a handwritten one", "seed": 5, "num_inference_steps": 40, "sampler": "ddpm"} | fields
    return Call(GenerationRequest.model_validate(given), "one")


def draw(handle: Handle, asked: Call) -> Generated:
    backend = SamplerBackend("tiny", handle, IngressMetrics(["tiny"]))  # type: ignore[arg-type]
    return asyncio.run(finished(backend.draw(asked)))


def test_a_picture_survives_its_replicas(often_kept: Sampler) -> None:
    whole = draw(Handle(often_kept, []), call(n=2))
    handle = Handle(often_kept, [0, 5, 3])
    survived = draw(handle, call(n=2))
    assert np.array_equal(survived.pixels, whole.pixels)
    begun = [0 if one.kept is None else one.kept.rows[0].index for one in handle.calls]
    assert begun[:2] == [0, 0]
    assert 0 < begun[2] < begun[3] < 40
    assert (handle.cancelled, handle.left) == (0, [])


def test_previews_go_on_where_they_were(often_kept: Sampler) -> None:
    async def watch() -> list[int]:
        backend = SamplerBackend("tiny", Handle(often_kept, [12]), IngressMetrics(["tiny"]))  # type: ignore[arg-type]
        asked = call(stream=True, preview_every=10)
        return [event.step async for event in backend.draw(asked) if isinstance(event, Preview)]

    assert asyncio.run(watch()) == [10, 20, 30]


def test_a_call_that_loses_every_replica_is_given_up(often_kept: Sampler) -> None:
    with pytest.raises(ActorDiedError):
        draw(Handle(often_kept, [0] * 9), call())


def test_a_bad_request_is_not_sent_twice(often_kept: Sampler) -> None:
    handle = Handle(often_kept, [])
    with pytest.raises(InvalidRequest):
        draw(handle, call(size="9x9"))
    assert len(handle.calls) == 1


def test_a_client_who_leaves_is_told_to_every_replica(often_kept: Sampler) -> None:
    async def leave() -> Handle:
        handle = Handle(often_kept, [])
        backend = SamplerBackend("tiny", handle, IngressMetrics(["tiny"]))  # type: ignore[arg-type]
        drawing = asyncio.create_task(finished(backend.draw(call(num_inference_steps=100, n=4))))
        # Rows of the tests before may still be there: only a call that was sent can be left.
        while not handle.calls or (await often_kept.load()).rows == 0:
            await asyncio.sleep(0)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        # It is told beside: who left does not wait for it.
        for _ in range(1000):
            if handle.left:
                break
            await asyncio.sleep(0)
        return handle

    handle = asyncio.run(leave())
    assert (handle.cancelled, handle.left) == (1, ["one"])


def test_an_answer_without_a_picture_is_an_error() -> None:
    async def nothing() -> AsyncGenerator[Event, None]:
        return
        yield  # makes this a generator

    with pytest.raises(EngineStopped):
        asyncio.run(finished(nothing()))


def test_what_is_kept_stays_inside(often_kept: Sampler) -> None:
    async def watch() -> list[Event]:
        backend = SamplerBackend("tiny", Handle(often_kept, []), IngressMetrics(["tiny"]))  # type: ignore[arg-type]
        return [event async for event in backend.draw(call())]

    assert not any(isinstance(event, Kept) for event in asyncio.run(watch()))
