"""A request goes on elsewhere when its replica is lost; over handles that fail, to real replicas."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from workflows.errors import EngineStopped, InvalidRequest, ModelNotFound
from workflows.serve.http.dispatch import DeploymentBackend, last_pictures
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.replica.replica import Replica
from workflows.serve.request.messages import Checkpoint, Refusal, SamplerRequest
from workflows.serve.request.pictures import Generated
from workflows.serve.request.schema import GenerationRequest


class Handle:
    """A deployment handle whose replica dies after so many messages, once per number in the list."""

    def __init__(self, replica: Replica, dies_after: list[int]) -> None:
        self._replica, self._dies_after = replica, dies_after
        self.requests: list[SamplerRequest] = []
        self.cancelled, self.broadcasts = 0, list[str]()
        self.generate = self

    def options(self, **options: Any) -> Handle:
        assert options == {"stream": True}
        return self

    def remote(self, request: SamplerRequest) -> Stream:
        self.requests.append(request)
        count = self._dies_after.pop(0) if self._dies_after else None
        return Stream(self, self._messages(request, count))

    def broadcast(self, method: str, request_id: str) -> Broadcast:
        assert method == "cancel"
        return Broadcast(self, request_id)

    async def _messages(
        self, request: SamplerRequest, count: int | None
    ) -> AsyncGenerator[Checkpoint | Generated, None]:
        sent = 0
        async for message in self._replica.generate(request):
            if count is not None and sent >= count:
                raise ActorDiedError
            sent += 1
            yield message


class Broadcast:
    """As Serve's: sent when its results are asked for, not before."""

    def __init__(self, handle: Handle, request_id: str) -> None:
        self._handle, self._request_id = handle, request_id

    async def results_async(self, *, return_exceptions: bool) -> list[None]:
        assert return_exceptions
        self._handle.broadcasts.append(self._request_id)
        return [None]


class Stream:
    def __init__(self, handle: Handle, messages: AsyncGenerator[Checkpoint | Generated, None]) -> None:
        self._handle, self._messages = handle, messages

    def __aiter__(self) -> AsyncIterator[Checkpoint | Generated]:
        return self._messages

    def cancel(self) -> None:
        self._handle.cancelled += 1


@pytest.fixture
def checkpointing(replica: Replica) -> Replica:
    """The replica, with a checkpoint after every step."""
    replica._args = replica._args.model_copy(update={"keep_seconds": 1e-6})
    return replica


def request(**fields: object) -> SamplerRequest:
    given = {"prompt": "a handwritten one", "seed": 5, "num_inference_steps": 40, "sampler": "ddpm"} | fields
    return SamplerRequest(GenerationRequest.model_validate(given), "one")


def backend(handle: Handle) -> DeploymentBackend:
    return DeploymentBackend("tiny", handle, IngressMetrics(["tiny"]))  # type: ignore[arg-type]


def generate(handle: Handle, sent: SamplerRequest) -> Generated:
    return asyncio.run(last_pictures(backend(handle).generate(sent)))


def test_a_picture_survives_its_replicas(checkpointing: Replica) -> None:
    whole = generate(Handle(checkpointing, []), request(n=2))
    handle = Handle(checkpointing, [0, 5, 3])
    survived = generate(handle, request(n=2))
    assert np.array_equal(survived.pixels, whole.pixels)
    steps = [0 if one.checkpoint is None else one.checkpoint.rows[0].index for one in handle.requests]
    assert steps[:2] == [0, 0]
    assert 0 < steps[2] < steps[3] < 40
    assert (handle.cancelled, handle.broadcasts) == (0, [])


def test_previews_go_on_where_they_were(checkpointing: Replica) -> None:
    async def watch() -> list[int]:
        generated = backend(Handle(checkpointing, [12])).generate(request(stream=True, preview_every=10))
        return [pictures.step async for pictures in generated if not pictures.finished]

    assert asyncio.run(watch()) == [10, 20, 30]


def test_a_request_that_loses_every_replica_is_given_up(checkpointing: Replica) -> None:
    with pytest.raises(ActorDiedError):
        generate(Handle(checkpointing, [0] * 9), request())


def test_a_refusal_comes_as_a_message_so_that_ray_prints_no_traceback(checkpointing: Replica) -> None:
    async def messages(sent: SamplerRequest) -> list[object]:
        return [message async for message in checkpointing.generate(sent)]

    for sent, kind in (
        (request(size="9x9"), InvalidRequest),
        (request(deadline_seconds=1e-9), InvalidRequest),
        (replace(request(), alias="nobody"), ModelNotFound),
    ):
        (refusal,) = asyncio.run(messages(sent))
        assert isinstance(refusal, Refusal) and isinstance(refusal.error, kind)
        assert isinstance(pickle.loads(pickle.dumps(refusal)).error, kind)  # as Ray does


def test_a_bad_request_is_not_sent_twice(checkpointing: Replica) -> None:
    handle = Handle(checkpointing, [])
    with pytest.raises(InvalidRequest):
        generate(handle, request(size="9x9"))
    assert len(handle.requests) == 1


def test_a_request_whose_client_leaves_is_cancelled_at_every_replica(checkpointing: Replica) -> None:
    async def leave() -> Handle:
        handle = Handle(checkpointing, [])
        generated = backend(handle).generate(request(num_inference_steps=100, n=4))
        generating = asyncio.create_task(last_pictures(generated))
        # Rows of the tests before may still be there: only a request that was sent can be cancelled.
        while not handle.requests or (await checkpointing.load()).rows == 0:
            await asyncio.sleep(0)
        generating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await generating
        # The broadcast is a task of its own: the client who left does not wait for it.
        for _ in range(1000):
            if handle.broadcasts:
                break
            await asyncio.sleep(0)
        return handle

    handle = asyncio.run(leave())
    assert (handle.cancelled, handle.broadcasts) == (1, ["one"])


def test_an_answer_without_a_picture_is_an_error() -> None:
    async def nothing() -> AsyncGenerator[Generated, None]:
        return
        yield  # makes this a generator

    with pytest.raises(EngineStopped):
        asyncio.run(last_pictures(nothing()))


def test_previews_alone_are_no_answer(checkpointing: Replica) -> None:
    async def cut() -> AsyncGenerator[Generated, None]:
        async for pictures in backend(Handle(checkpointing, [])).generate(request(stream=True, preview_every=10)):
            if not pictures.finished:
                yield pictures

    with pytest.raises(EngineStopped):
        asyncio.run(last_pictures(cut()))


def test_checkpoints_stay_inside(checkpointing: Replica) -> None:
    async def watch() -> list[Generated]:
        return [pictures async for pictures in backend(Handle(checkpointing, [])).generate(request())]

    assert [type(pictures) for pictures in asyncio.run(watch())] == [Generated]
