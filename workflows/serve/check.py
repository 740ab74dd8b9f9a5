"""The stage that checks the service: it deploys the registered model, and sends real HTTP requests."""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

import httpx

from workflows.config.schema import RunConfig
from workflows.data.dataset import DataInfo
from workflows.errors import StageFailed
from workflows.options.guidance import KINDS
from workflows.options.samplers import SAMPLERS
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.serve.app import build
from workflows.serve.host import hosted
from workflows.serve.settings import ServeArgs

APP_NAME: Final = "raverse-check"
_SEED: Final = 7
_TIMEOUT_SECONDS: Final = 120.0


@final
@dataclass(frozen=True)
class Answer:
    """One request and its answer, as `service.json` lists them.

    Attributes:
        request: the body that was sent.
        status: the HTTP status.
        seconds: time until the answer.
        version: the model version that answered.
        seed: the seed of the picture.
        picture: the file name of the picture.
    """

    request: dict[str, Any]
    status: int
    seconds: float
    version: str
    seed: int
    picture: str


def check_service(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Deploys the registered model, and requests one picture of each kind of guidance by each sampler.

    Args:
        config: the job.
        inputs: the artifacts `data` and `register`.
        folder: receives the pictures and `service.json`.
        progress: counts the finished requests.

    Returns:
        The number of requests, and seconds: until the service was ready, of the slowest request, and of the median one.
        A model of vectors gets no requests, since the service answers with pictures.

    Raises:
        AddressInUse: the port is taken.
        StageFailed: the service did not start, or did not answer with a picture.
    """
    rows = DataInfo.load(inputs["data"].folder).rows
    if not rows.drawable:
        progress.log(f"the service answers with pictures, and this model draws {rows.name}: it is not asked")
        return {"requests": 0}
    registered = inputs["register"].metrics
    # The service answers this machine only, so that the check needs no key.
    changes = {"api_keys_file": None, "require_key": "loopback_only"}
    args = ServeArgs.of(config, f"{registered['model']}@{registered['alias']}").model_copy(update=changes)
    started = time.monotonic()
    # The check has a prefix of its own, since a cluster may serve something at / already.
    with hosted(config.serve, build(args), APP_NAME, f"/{APP_NAME}") as url:
        ready = time.monotonic()
        progress.log(f"{args.model} answers at {url}")
        answers = asyncio.run(_send_all(url, folder, progress))
    _check_versions(answers, str(registered["version"]))
    figures = {
        "requests": len(answers),
        "start_seconds": round(ready - started, 3),
        "request_seconds": round(max(answer.seconds for answer in answers), 3),
        "p50_seconds": round(statistics.median(answer.seconds for answer in answers), 3),
    }
    service = {"model": args.model, "url": url} | figures | {"answers": [asdict(answer) for answer in answers]}
    (folder / "service.json").write_text(json.dumps(service, indent=2))
    return figures


def requests_for(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The bodies of the requests by the name of the picture: one per kind of guidance and sampler.

    Args:
        card: an entry of `GET /v1/models`.
    """
    prompt, classes = card["example_prompts"][-1], card["classes"]
    num_steps = {name: min(row.check_steps, card["max_steps"]) for name, row in SAMPLERS.items() if row.check_steps}
    kinds: dict[str, dict[str, Any]] = {}
    for kind in (KINDS[name] for name in card["guidance"]):
        name, words = kind.title.lower(), "" if kind.needs == "nothing" else prompt
        kinds[f"{name}-by-prompt" if kind.takes_label else name] = {"prompt": words, "guidance": kind.name}
        if kind.takes_label and classes:
            kinds[f"{name}-by-class"] = {"prompt": "", "guidance": kind.name, "label": classes[-1]}
    return {
        f"{kind}-{sampler}": fields | {"sampler": sampler, "num_inference_steps": steps, "seed": _SEED}
        for kind, fields in kinds.items()
        for sampler, steps in num_steps.items()
    }


async def _send_all(url: str, folder: Path, progress: Progress) -> list[Answer]:
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS) as client:
        models = await client.get("/v1/models")
        if not models.is_success:
            raise StageFailed(f"GET {url}/v1/models answered {models.status_code}: {models.text[:300]}")
        requests = requests_for(models.json()["data"][0])
        progress.start(len(requests), "requests")
        tasks = [asyncio.create_task(_send(client, name, body, folder)) for name, body in requests.items()]
        for done, task in enumerate(asyncio.as_completed(tasks), start=1):
            answer = await task
            progress.advance(done, seconds=answer.seconds)
        return [task.result() for task in tasks]


async def _send(client: httpx.AsyncClient, name: str, body: dict[str, Any], folder: Path) -> Answer:
    started = time.monotonic()
    try:
        response = await client.post("/v1/images/generations", json=body)
    except httpx.HTTPError as error:
        raise StageFailed(f"the service did not answer {json.dumps(body)} ({type(error).__name__}: {error})") from error
    seconds = time.monotonic() - started
    if not response.is_success:
        raise StageFailed(f"the service answered {response.status_code} to {json.dumps(body)}: {response.text[:300]}")
    answer = response.json()
    picture = folder / f"{name}.png"
    picture.write_bytes(base64.b64decode(answer["data"][0]["b64_json"]))
    settings = answer["settings"]
    return Answer(
        body, response.status_code, round(seconds, 3), settings["version"], settings["seeds"][0], picture.name
    )


def _check_versions(answers: Sequence[Answer], registered: str) -> None:
    versions = {answer.version for answer in answers}
    if versions != {registered}:
        raise StageFailed(
            f"the service answered with version {', '.join(sorted(versions))}, wanted the registered {registered}: "
            f"another job moved the alias; register again"
        )
