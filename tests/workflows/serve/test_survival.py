"""Minutes of trouble on real Ray Serve: killed replicas, swaps, clients who leave, bad bodies. Nothing is lost."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import ray
from numpy.typing import NDArray
from PIL import Image
from ray import serve

from tests.workflows.serve.conftest import free_port, make_config, register_package
from workflows.serve.app import APP_NAME, build
from workflows.tracking.store import open_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REQUESTS = int(os.environ.get("RAVERSE_SOAK_REQUESTS", "10000"))
GROWTH = 1.05


class Service:
    """Two replicas, and a registry whose alias moves."""

    def __init__(self, url: str, uri: str) -> None:
        self.url, self.uri = url, uri

    def move(self, version: str) -> None:
        open_client(self.uri).set_registered_model_alias("tiny", "champion", version)

    def replicas(self, deployment: str) -> list[int]:
        """Process numbers."""
        title = f"ray::ServeReplica:{APP_NAME}:{deployment}"
        return [one.pid for one in psutil.Process().children(recursive=True) if _title(one).startswith(title)]

    def handovers(self) -> float:
        """Requests that lost their replica and went on at another, as the metrics count them."""
        node = ray.nodes()[0]
        exporter = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        values = re.findall(
            r"^ray_raverse_handovers_total\{.*\} (\S+)$", httpx.get(exporter, timeout=30).text, re.MULTILINE
        )
        return sum(map(float, values))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Waits until a condition holds; Ray collects metrics every ten seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.5)
    return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def packages(tiny_package: Path, write_package: Callable[..., Path], tmp_path_factory: Any) -> list[Path]:
    return [tiny_package, write_package(tmp_path_factory.mktemp("second"), seed=1, spread=0.3)]


@pytest.fixture
def service(
    ray_session: None, packages: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Service]:
    config, port = make_config(tmp_path / "registry"), free_port()
    uri = f"sqlite:///{config.root_folder / 'mlflow.db'}"
    for package in packages:
        register_package(config, package)
    found = Service(f"http://127.0.0.1:{port}/v1/images/generations", uri)
    found.move("1")
    args = {
        "model": "tiny@champion",
        "tracking_uri": uri,
        "max_rows": 8,
        "max_waiting_rows": 512,
        "min_replicas": 2,
        "max_replicas": 2,
        "num_cpus": 0.0,
        "poll_seconds": 0.5,
        "keep_seconds": 0.05,
    } | getattr(request, "param", {})
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(args), name=APP_NAME, route_prefix="/")
    yield found
    serve.shutdown()


def pixels(response: httpx.Response) -> list[NDArray[np.int16]]:
    assert response.status_code == 200, response.text
    files = [base64.b64decode(image["b64_json"]) for image in response.json()["data"]]
    return [np.asarray(Image.open(io.BytesIO(file))).astype(np.int16) for file in files]


def bodies(count: int) -> list[dict[str, Any]]:
    kinds = ("classifier_free", "direct", "classifier", "clip")
    return [
        {
            "prompt": "a handwritten one",
            "seed": 10 * number,
            "n": 1 + number % 4,
            "num_inference_steps": 50 - number % 7,
            "guidance": kinds[number % 4],
            "sampler": ("ddpm", "ddim", "dpm_solver")[number % 3],
        }
        for number in range(count)
    ]


def test_killed_replicas_lose_nothing_and_the_pictures_are_the_same(service: Service) -> None:
    requests = bodies(24)

    async def send_all(victim: int | None = None) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=300) as client:
            tasks = [asyncio.create_task(client.post(service.url, json=body)) for body in requests]
            if victim is not None:
                # Both replicas are at work from the first answer to the last.
                answered, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                assert 0 < len(answered) < len(waiting)
                os.kill(victim, signal.SIGKILL)
            return list(await asyncio.gather(*tasks))

    calm = [pixels(response) for response in asyncio.run(send_all())]
    assert service.handovers() == 0
    before = service.replicas("sampler")
    assert len(before) == 2
    troubled = [pixels(response) for response in asyncio.run(send_all(victim=before[0]))]
    assert before[0] not in service.replicas("sampler")
    # The replica that was killed had requests, which went on at the other one.
    assert until(lambda: service.handovers() > 0)
    for wanted, found in zip(calm, troubled, strict=True):
        assert max(np.abs(one - other).max() for one, other in zip(wanted, found, strict=True)) <= 1


def test_thousands_of_requests_with_leavers_bad_bodies_and_swaps_all_end_well(service: Service) -> None:
    chance = random.Random(0)
    ended: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    memory: list[dict[int, int]] = []
    swaps = {REQUESTS // 4: "2", REQUESTS // 2: "1", 3 * REQUESTS // 4: "2"}
    bad: list[dict[str, Any]] = [{"n": 0}, {"bogus": 1}, {"prompt": None}, {"label": 99, "guidance": "classifier"}]

    async def one(client: httpx.AsyncClient, number: int) -> None:
        kind = chance.random()
        body = {"prompt": "a handwritten one", "num_inference_steps": chance.randint(1, 12), "n": chance.randint(1, 2)}
        if kind < 0.1:
            response = await client.post(service.url, json=body | chance.choice(bad))
            assert response.status_code == 400, response.text
            ended["bad"] += 1
            return
        try:
            patience = chance.uniform(0.001, 0.1) if kind < 0.2 else 300
            response = await client.post(service.url, json=body, timeout=patience)
        except httpx.TimeoutException:
            assert kind < 0.2
            ended["left"] += 1
            return
        assert response.status_code in (200, 429), response.text
        ended[str(response.status_code)] += 1
        if response.status_code == 200:
            assert len(response.json()["data"]) == body["n"]
            versions[response.json()["settings"]["version"]] += 1

    async def all_of_them() -> None:
        numbers = iter(range(REQUESTS))
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=64)) as client:

            async def worker() -> None:
                for number in numbers:
                    if number in swaps:
                        service.move(swaps[number])
                    if number in (REQUESTS // 2, REQUESTS - 1):
                        memory.append(rss(service))
                    await one(client, number)

            await asyncio.gather(*(worker() for _ in range(24)))

    started = time.monotonic()
    asyncio.run(all_of_them())
    print(f"{REQUESTS} requests in {time.monotonic() - started:.0f} s: {dict(ended)}, versions {dict(versions)}")
    assert sum(ended.values()) == REQUESTS
    assert set(versions) == {"1", "2"}
    half, end = memory
    grown = {pid: end[pid] / half[pid] for pid in half if pid in end}
    print({pid: f"{half[pid] / 2**20:.0f} MiB, x{growth:.3f}" for pid, growth in grown.items()})
    assert len(grown) == 3
    if REQUESTS >= 10000:
        assert max(grown.values()) <= GROWTH


SCALING = {"min_replicas": 1, "target_seconds": 0.2, "upscale_seconds": 1.0, "downscale_seconds": 1.0}


@pytest.mark.parametrize("service", [SCALING], indirect=True)
def test_replicas_follow_the_seconds_that_wait_and_leave_without_losing_a_request(service: Service) -> None:
    body = {"prompt": "a handwritten one", "num_inference_steps": 100, "n": 10, "sampler": "ddpm"}
    answered: Counter[int] = Counter()

    async def ask(together: int, replicas: int, **changes: Any) -> None:
        """Asks until so many replicas run; Ray looks back half a minute, and its replicas report every ten seconds."""
        until = time.monotonic() + 180
        async with httpx.AsyncClient(timeout=300) as client:
            while time.monotonic() < until and len(service.replicas("sampler")) != replicas:
                answers = [client.post(service.url, json=body | changes) for _ in range(together)]
                answered.update(answer.status_code for answer in await asyncio.gather(*answers))

    assert len(service.replicas("sampler")) == 1
    asyncio.run(ask(12, replicas=2))
    assert len(service.replicas("sampler")) == 2
    # Two requests run at any time, so the replica that leaves has something to finish.
    asyncio.run(ask(2, replicas=1, n=1, num_inference_steps=10))
    assert len(service.replicas("sampler")) == 1
    print(dict(answered))
    assert set(answered) <= {200, 429}


def rss(service: Service) -> dict[int, int]:
    found = service.replicas("sampler") + service.replicas("ingress")
    return {pid: psutil.Process(pid).memory_info().rss for pid in found}
