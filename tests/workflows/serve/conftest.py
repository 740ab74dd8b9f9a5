"""A running service: the tiny package under an alias of a real registry, on real Ray Serve over HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from workflows.config.schema import RunConfig
from workflows.model.model import clip_folder
from workflows.package.files import PackageCard
from workflows.release.logging import log_package
from workflows.runtime.artifact import Artifact
from workflows.serve.app import APP_NAME, build
from workflows.serve.engine.load import EngineLoad
from workflows.serve.http.guard import AccessRules
from workflows.serve.http.ingress import http_api
from workflows.serve.http.keys import KeyRing
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.replica.replica import Replica
from workflows.serve.replica.text_encoder import CachedTower
from workflows.serve.request.messages import Refusal, SamplerRequest
from workflows.serve.request.pictures import Generated
from workflows.serve.request.schema import ModelCard
from workflows.serve.settings import ServeArgs
from workflows.towers.clip import load_clip
from workflows.towers.features import EncodedText
from workflows.tracking.run import tracked_run

MODEL = "tiny"
DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana.json"


@dataclass(frozen=True)
class Service:
    """The address of the service, and the handle of its sampler deployment."""

    url: str
    sampler: DeploymentHandle[Any]

    def post(self, **fields: object) -> httpx.Response:
        """Requests pictures."""
        return httpx.post(
            f"{self.url}/v1/images/generations", json={"prompt": "a handwritten one", **fields}, timeout=60
        )

    def load(self) -> EngineLoad:
        """The load of the only replica."""
        load: EngineLoad = self.sampler.load.remote().result(timeout_s=30)
        return load


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_config(root: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"source": "digits"},
            "register": {"model_name": MODEL},
            "storage": {"root": str(root)},
            "serve": {"port": free_port(), "num_steps": 20},
        }
    )


def register_package(config: RunConfig, package: Path) -> str:
    """Makes a version of the package, moves the alias to it, and returns its number."""
    config.root_folder.mkdir(parents=True, exist_ok=True)
    name = config.register_.model_name
    with tracked_run(config, config.root_folder / "run.json") as run:
        if not run.client.search_registered_models(f"name = '{name}'"):
            run.client.create_registered_model(name)
        card = PackageCard.load(package)
        uri, model_id = log_package(run, package, card)
        tags = {"package_hash": card.hash}
        made = run.client.create_model_version(name, uri, run.run_id, tags, model_id=model_id)
        run.client.set_registered_model_alias(name, config.register_.alias, made.version)
    return str(made.version)


def check_inputs(config: RunConfig, data: Artifact) -> dict[str, Artifact]:
    """What the serve-check stage reads: the data, and what the register stage says of the first version."""
    metrics = {"model": config.register_.model_name, "version": "1", "alias": config.register_.alias}
    return {"data": data, "register": Artifact("register", "0" * 64, config.root_folder, metrics=metrics)}


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory, tiny_package: Path) -> RunConfig:
    """A job whose registry holds the tiny package as champion."""
    config = make_config(tmp_path_factory.mktemp("registry"))
    register_package(config, tiny_package)
    return config


class LocalEncoder:
    """Answers as the handle of the text encoder does, from the real tower."""

    def __init__(self, package: Path) -> None:
        self._tower = CachedTower(load_clip(clip_folder(package)).text)
        self.encode = self

    async def remote(self, model: str, text: str) -> EncodedText:
        assert model.startswith(f"{MODEL}/")
        return self._tower.encode([text])[0]


class LocalBackend:
    """A replica in this process, as the routes use it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def generate(self, request: SamplerRequest) -> AsyncGenerator[Generated, None]:
        async with aclosing(self._replica.generate(request)) as messages:
            async for message in messages:
                if isinstance(message, Refusal):
                    raise message.error
                if isinstance(message, Generated):
                    yield message

    async def model_card(self, alias: str | None = None) -> ModelCard:
        card = await self._replica.model_card(alias)
        if isinstance(card, Refusal):
            raise card.error
        return card

    async def loads(self) -> list[EngineLoad]:
        return [await self._replica.load()]


@pytest.fixture(scope="module")
def replica(tiny_config: RunConfig, tiny_package: Path) -> Iterator[Replica]:
    """A real replica in this process, without Ray."""
    args = ServeArgs.of(tiny_config).model_copy(update={"max_rows": 4, "poll_seconds": 0.0})
    replica = Replica(args, LocalEncoder(tiny_package))  # type: ignore[arg-type]
    yield replica
    replica.stop()


@pytest.fixture(scope="module")
def api(replica: Replica) -> FastAPI:
    """The routes over it, open to anyone."""
    return http_api({MODEL: LocalBackend(replica)}, AccessRules(KeyRing(()), "never"), IngressMetrics(["tiny"]))


def call(api: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """Asks the routes, without a socket."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


@pytest.fixture(scope="session")
def ask() -> Callable[..., httpx.Response]:
    """See `call`."""
    return call


@pytest.fixture(scope="module")
def service(ray_session: None, tiny_config: RunConfig) -> Iterator[Service]:
    """The application on the session's Ray, with a small queue."""
    port = free_port()
    args = {
        "model": f"{MODEL}@{tiny_config.register_.alias}",
        "tracking_uri": f"sqlite:///{tiny_config.root_folder / 'mlflow.db'}",
        "num_steps": 20,
        "max_rows": 8,
        "max_waiting_rows": 32,
    }
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(args), name=APP_NAME, route_prefix="/")
    yield Service(f"http://127.0.0.1:{port}", serve.get_deployment_handle("sampler", APP_NAME))
    serve.shutdown()
