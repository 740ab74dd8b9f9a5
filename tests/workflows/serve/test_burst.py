"""Far more requests at once than can be served: each gets a picture, or a refusal that clients understand, at once."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import httpx
import pytest
import ray

from tests.workflows.serve.conftest import Service

pytestmark = pytest.mark.slow

BURST = 2000
MAX_WAITING = 32


@dataclass(frozen=True)
class Answered:
    status: int
    retry_after: str | None
    body: bytes
    seconds: float


async def send(host: str, port: int, content: bytes, ready: asyncio.Event) -> Answered:
    """One request on a connection of its own; its time runs from the moment at which all are sent."""
    reader, writer = await asyncio.open_connection(host, port)
    await ready.wait()
    started = time.monotonic()
    writer.write(content)
    answer = await reader.read()
    seconds = time.monotonic() - started
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)retry-after: *(\d+)", head)
    return Answered(int(head.split()[1]), found and found[1].decode(), body, seconds)


async def burst(url: str, num: int, settle: float = 2.0, **fields: object) -> list[Answered]:
    address, ready = urlsplit(url), asyncio.Event()
    body = json.dumps({"prompt": "a handwritten one", **fields}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    content = head.encode() + body
    assert address.hostname and address.port
    asked = [asyncio.create_task(send(address.hostname, address.port, content, ready)) for _ in range(num)]
    await asyncio.sleep(settle)
    ready.set()
    return list(await asyncio.gather(*asked))


def test_every_answer_of_a_burst_is_a_picture_or_a_429_in_openai_s_shape(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert service.post(num_inference_steps=2).status_code == 200
    answers = asyncio.run(burst(service.url, BURST, num_inference_steps=50))
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.status for answer in answers} == {200, 429}
    assert len(answers) - len(refused) >= MAX_WAITING
    for answer in refused:
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
        assert answer.retry_after and int(answer.retry_after) >= 1
    seconds = quantiles([answer.seconds for answer in refused], n=100)
    with capsys.disabled():
        print(f"\n{len(refused)} of {BURST} refused: p50 {seconds[49]:.3f} s, p99 {seconds[98]:.3f} s")
    # The aim is half a second on two idle processors; before there was a door, it was 47 s.
    assert seconds[98] < 5.0
    assert service.post(num_inference_steps=2).status_code == 200


def test_whoever_comes_after_retry_after_is_let_in(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    async def crowd() -> tuple[float, float]:
        card = httpx.get(f"{service.url}/v1/models").json()["data"][0]
        work = {"num_inference_steps": card["max_steps"], "guidance": "classifier_free+classifier+clip"}
        working = asyncio.create_task(burst(service.url, MAX_WAITING, **work))
        while service.load().rows < MAX_WAITING:
            await asyncio.sleep(0.05)
        started = time.monotonic()
        (first,) = await burst(service.url, 1, 0.0, num_inference_steps=1)
        assert first.status == 429 and first.retry_after
        while (await burst(service.url, 1, 0.0, num_inference_steps=1))[0].status == 429:
            await asyncio.sleep(0.05)
            assert time.monotonic() - started < 600
        waited = time.monotonic() - started
        assert {answer.status for answer in await working} == {200}
        return float(first.retry_after), waited

    told, waited = asyncio.run(crowd())
    with capsys.disabled():
        print(f"\ntold {told:.0f} s, let in after {waited:.1f} s")
    # A header holds whole seconds, and other programs take their share of the machine.
    assert waited / 2 - 1 < told < waited * 2 + 1


def test_no_refusal_left_a_traceback(service: Service) -> None:
    for fields in ({"size": "9x9"}, {"model": "nobody"}, {"deadline_seconds": 1e-6}, {"n": 0}):
        assert service.post(**fields).status_code in (400, 404)
    time.sleep(1.0)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]
    texts = {path: path.read_text(errors="replace") for path in (logs / "serve").glob("*.log")}
    assert any("event" in text for text in texts.values())
    assert {path.name for path, text in texts.items() if "Traceback" in text} == set()
