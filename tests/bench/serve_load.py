"""The mixed load of the serving benchmarks, and how it is sent."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

CLIENTS = 32
_LIMITS = httpx.Limits(max_connections=None)
_TIMEOUT = 600.0


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """10 to 100 steps of any sampler; half classifier-free, 15% classifier-guided."""
    draw = random.Random(seed)
    return [
        {
            "prompt": f"a handwritten {draw.choice(('one', 'two', 'three'))}",
            "guidance": draw.choices(("classifier_free", "direct", "classifier"), (0.5, 0.35, 0.15))[0],
            "sampler": draw.choice(("ddim", "ddpm", "dpm_solver")),
            "num_inference_steps": draw.randint(10, 100),
            "seed": number,
        }
        for number in range(count)
    ]


@dataclass(frozen=True)
class Sent:
    """What a load came to: seconds until each picture, and seconds until the last one."""

    latencies: tuple[float, ...]
    seconds: float

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return len(self.latencies) / self.seconds


def percentile(latencies: Sequence[float], share: float) -> float:
    """The smallest latency that this share of the requests does not exceed."""
    return sorted(latencies)[min(len(latencies) - 1, int(share * len(latencies)))]


async def saturate(url: str, bodies: Sequence[dict[str, Any]]) -> Sent:
    """As fast as 32 clients go that never wait."""
    waiting, latencies = list(reversed(bodies)), []
    async with httpx.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS) as client:

        async def one() -> None:
            while waiting:
                latencies.append(await _ask(client, url, waiting.pop()))

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        return Sent(tuple(latencies), time.perf_counter() - started)


async def poisson(url: str, bodies: Sequence[dict[str, Any]], rate: float, seed: int) -> Sent:
    """Requests at random times, whatever became of those before."""
    draw = random.Random(seed)
    async with httpx.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS) as client:
        started, asked = time.perf_counter(), []
        for body in bodies:
            asked.append(asyncio.create_task(_ask(client, url, body)))
            await asyncio.sleep(draw.expovariate(rate))
        return Sent(tuple(await asyncio.gather(*asked)), time.perf_counter() - started)


async def in_turn(urls: dict[str, str], bodies: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Low load: one request after the other, each to every arm; who is first changes."""
    found: dict[str, list[float]] = {arm: [] for arm in urls}
    async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
        for number, body in enumerate(bodies):
            for arm in sorted(urls, reverse=number % 2 == 1):
                found[arm].append(await _ask(client, urls[arm], body))
    return found


async def _ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    response = await client.post(url, json=body)
    assert response.status_code == 200, response.text
    return time.perf_counter() - started
