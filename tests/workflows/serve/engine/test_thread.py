"""Rows of many requests on one engine: joined, apart, and gone with their client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import torch
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.engine import StepEngine
from diffusion_core.errors import InvalidShape, NonFinite
from diffusion_core.row import Trajectory
from diffusion_core.sampler import ddim
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.spacing import trailing
from diffusion_core.trajectory import sample
from workflows.errors import EngineStopped, Overloaded
from workflows.serve.engine.admission import Admission
from workflows.serve.engine.queued_request import Update
from workflows.serve.engine.thread import EngineThread

SCHEDULE = NoiseSchedule.cosine(1000)
SHAPE = (2, 4)


class Gate:
    """A network that can be held, and that breaks on rows of one label."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.rows: list[int] = []

    def __call__(self, x: Tensor, level: Tensor, condition: Condition | None) -> Tensor:
        self.rows.append(len(x))
        self.entered.set()
        assert self.open.wait(30)
        out = 0.3 * x + level[:, None, None] / 1000
        if condition is not None and condition.label is not None:
            out = torch.where((condition.label == 13)[:, None, None], torch.nan, out)
        return out


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def denoiser(gate: Gate) -> NetworkDenoiser:
    return NetworkDenoiser(gate, SCHEDULE, "v")


@pytest.fixture
def thread(gate: Gate, denoiser: NetworkDenoiser) -> Iterator[EngineThread]:
    engine = StepEngine(denoiser, SHAPE, max_rows=8)
    thread = EngineThread(engine, Admission(max_waiting_rows=10, max_rows=8))
    yield thread
    gate.open.set()
    thread.stop()
    engine.check()


def rows(num_steps: int, *seeds: int, label: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Trajectory]:
    plan = ddim(SCHEDULE, trailing(SCHEDULE, num_steps))
    return [Trajectory.start(plan, Condition.of(label=[label]), seed=seed, shape=shape) for seed in seeds]


async def sampled(thread: EngineThread, rows: list[Trajectory], **options: float) -> list[Tensor]:
    """The samples of the rows."""
    progress = [progress async for progress in thread.follow(rows, **options)]  # type: ignore[arg-type]
    return [row for row in progress[-1].rows if isinstance(row, Tensor)]


async def until_entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 30)


def test_samples_are_those_of_the_core_alone_and_in_a_crowd(thread: EngineThread, denoiser: NetworkDenoiser) -> None:
    async def crowd() -> list[list[Tensor]]:
        calls = [sampled(thread, rows(steps, *seeds)) for steps, seeds in ((9, [1, 2]), (4, [3]), (25, [4, 5, 6]))]
        return await asyncio.gather(*calls)

    found = asyncio.run(crowd())
    for (steps, seeds), samples in zip(((9, [1, 2]), (4, [3]), (25, [4, 5, 6])), found, strict=True):
        plan = ddim(SCHEDULE, trailing(SCHEDULE, steps))
        wanted = sample(denoiser, plan, Condition.of(label=[0]), seeds=seeds, shape=SHAPE)
        torch.testing.assert_close(torch.stack(samples), wanted)


def test_a_row_joins_at_the_next_step(thread: EngineThread, gate: Gate) -> None:
    async def join() -> None:
        gate.open.clear()
        first = asyncio.create_task(sampled(thread, rows(6, 1)))
        await until_entered(gate)
        second = asyncio.create_task(sampled(thread, rows(6, 2)))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, second)

    asyncio.run(join())
    assert gate.rows == [1, 2, 2, 2, 2, 2, 1]


def test_a_bad_row_ends_its_own_request_only(thread: EngineThread) -> None:
    async def crowd() -> tuple[object, object]:
        good, bad = sampled(thread, rows(8, 1)), sampled(thread, rows(8, 2, 3, label=13))
        return tuple(await asyncio.gather(good, bad, return_exceptions=True))  # type: ignore[return-value]

    good, bad = asyncio.run(crowd())
    assert isinstance(bad, NonFinite)
    assert isinstance(good, list)
    torch.testing.assert_close(good, asyncio.run(sampled(thread, rows(8, 1))))
    assert (thread.load.rows, thread.load.failed, thread.load.finished) == (0, 1, 2)


def test_a_row_of_another_shape_is_refused_and_none_of_its_request_stays(thread: EngineThread) -> None:
    with pytest.raises(InvalidShape):
        asyncio.run(sampled(thread, [*rows(8, 1), *rows(8, 2, shape=(3,))]))
    assert thread.load.rows == 0


def test_rows_leave_with_their_client_within_one_step(thread: EngineThread, gate: Gate) -> None:
    async def leave() -> list[Tensor]:
        gate.open.clear()
        leaving = asyncio.create_task(sampled(thread, rows(1000, 1, 2)))
        await until_entered(gate)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.open.set()
        return await sampled(thread, rows(3, 3))

    asyncio.run(leave())
    assert gate.rows == [2, 1, 1, 1]
    assert (thread.load.rows, thread.load.cancelled, thread.load.finished) == (0, 2, 1)


def test_a_full_engine_refuses_and_says_how_long_it_takes(thread: EngineThread, gate: Gate) -> None:
    async def overflow() -> Overloaded:
        await sampled(thread, rows(3, 0))
        gate.entered.clear()
        gate.open.clear()
        first = asyncio.create_task(sampled(thread, rows(5, *range(8))))
        await until_entered(gate)
        third = asyncio.create_task(sampled(thread, rows(5, 1, 2, 3)))
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(Overloaded) as caught:
            await third
        await first
        return caught.value

    error = asyncio.run(overflow())
    assert error.retry_after > 0


def test_a_request_larger_than_the_limit_is_served_when_it_is_alone(thread: EngineThread) -> None:
    assert len(asyncio.run(sampled(thread, rows(2, *range(12))))) == 12


def test_an_idle_thread_makes_no_step(thread: EngineThread, gate: Gate) -> None:
    asyncio.run(sampled(thread, rows(3, 1)))
    asyncio.run(asyncio.sleep(0.05))
    assert len(gate.rows) == 3


def test_progress_comes_at_the_preview_points(thread: EngineThread, denoiser: NetworkDenoiser) -> None:
    async def follow() -> list[Update]:
        return [progress async for progress in thread.follow(rows(10, 1, 2), preview_points=(7, 2))]

    reports = asyncio.run(follow())
    assert [(progress.preview_due, progress.done) for progress in reports] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    unfinished = [[row for row in progress.rows if isinstance(row, Trajectory)] for progress in reports]
    assert [[row.remaining for row in each] for each in unfinished] == [[7, 7], [2, 2], []]
    plan = ddim(SCHEDULE, trailing(SCHEDULE, 10))
    wanted = sample(denoiser, plan, Condition.of(label=[0]), seeds=[1, 2], shape=SHAPE)
    torch.testing.assert_close(torch.stack([row for row in reports[-1].rows if isinstance(row, Tensor)]), wanted)


def test_a_row_in_progress_goes_on_elsewhere_to_the_same_sample(thread: EngineThread) -> None:
    async def hand_over() -> tuple[list[Tensor], list[Tensor]]:
        async with aclosing(thread.follow(rows(10, 1), preview_points=(4,))) as reports:
            first = await anext(reports)
            last = [progress async for progress in reports][-1]
        half = [row for row in first.rows if isinstance(row, Trajectory)]
        return [row for row in last.rows if isinstance(row, Tensor)], await sampled(thread, half)

    whole, resumed = asyncio.run(hand_over())
    torch.testing.assert_close(whole, resumed)


def test_samples_among_the_rows_pass_through_in_their_places(thread: EngineThread) -> None:
    first, last = rows(10, 1, 2)
    sample_of_another = torch.full(SHAPE, 5.0)

    async def follow(*given: Trajectory | Tensor) -> list[Update]:
        return [progress async for progress in thread.follow(given, preview_points=(4,))]

    preview, end = asyncio.run(follow(first, sample_of_another, last))
    assert [row.remaining for row in preview.rows if isinstance(row, Trajectory)] == [4, 4]
    assert [progress.rows[1] is sample_of_another for progress in (preview, end)] == [True, True]
    alone = asyncio.run(sampled(thread, rows(10, 1, 2)))
    torch.testing.assert_close([end.rows[0], end.rows[2]], alone)
    (only,) = asyncio.run(follow(sample_of_another))
    assert only.done and only.rows == [sample_of_another]


def test_checkpoints_are_as_frequent_as_requested(thread: EngineThread) -> None:
    async def count(checkpoint_seconds: float) -> int:
        reports = thread.follow(rows(20, 1), checkpoint_seconds=checkpoint_seconds)
        return len([progress async for progress in reports])

    assert asyncio.run(count(0.0)) == 20
    assert asyncio.run(count(60.0)) == 1


def test_a_request_is_cancelled_by_its_id_and_others_stay(thread: EngineThread, gate: Gate) -> None:
    async def leave() -> list[object]:
        gate.open.clear()
        first = asyncio.create_task(count("first"))
        await until_entered(gate)
        second = asyncio.create_task(count("second"))
        await asyncio.sleep(0)
        thread.cancel("first")
        thread.cancel("nobody")
        gate.open.set()
        return list(await asyncio.gather(first, second, return_exceptions=True))

    async def count(request_id: str) -> int:
        return len([progress async for progress in thread.follow(rows(6, 1), request_id=request_id)])

    first, second = asyncio.run(leave())
    assert isinstance(first, asyncio.CancelledError)
    assert second == 1
    assert gate.rows == [1] * 7
    assert thread.load.cancelled == 1


def test_a_queue_of_too_many_seconds_is_refused_whatever_its_rows(denoiser: NetworkDenoiser, gate: Gate) -> None:
    thread = EngineThread(StepEngine(denoiser, SHAPE), Admission(max_waiting_rows=1000, max_waiting_seconds=1e-9))

    async def overflow() -> float:
        await sampled(thread, rows(3, 0))
        gate.entered.clear()
        gate.open.clear()
        first = asyncio.create_task(sampled(thread, rows(50, 1)))
        await until_entered(gate)
        second = asyncio.create_task(sampled(thread, rows(2, 2)))
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(Overloaded, match="s of denoising wait") as caught:
            await second
        await first
        return caught.value.retry_after

    assert asyncio.run(overflow()) > 0
    assert thread.load.refused == 1
    thread.stop()


def test_stopping_fails_those_who_wait_and_those_who_come(gate: Gate, denoiser: NetworkDenoiser) -> None:
    thread = EngineThread(StepEngine(denoiser, SHAPE), Admission(max_waiting_rows=10))

    async def stop() -> None:
        gate.open.clear()
        waiting = asyncio.create_task(sampled(thread, rows(1000, 1)))
        await until_entered(gate)
        stopping = asyncio.create_task(asyncio.to_thread(thread.stop))
        await asyncio.sleep(0.05)
        gate.open.set()
        await stopping
        with pytest.raises(EngineStopped):
            await waiting
        with pytest.raises(EngineStopped):
            await sampled(thread, rows(1, 1))
        with pytest.raises(EngineStopped):
            thread.check()

    asyncio.run(stop())
