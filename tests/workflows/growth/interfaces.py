"""The interfaces of a grown copy of the code: its command line, and its service without Ray or registry."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np
from numpy.typing import NDArray
from typer.testing import CliRunner

from workflows.cli.app import app
from workflows.data.png import decode_png
from workflows.model.model import clip_folder
from workflows.package.reference import ModelVersion, ResolvedModel
from workflows.serve.http.guard import AccessRules
from workflows.serve.http.ingress import http_api
from workflows.serve.http.keys import KeyRing
from workflows.serve.http.metrics import IngressMetrics
from workflows.serve.replica import versions
from workflows.serve.replica.replica import Replica
from workflows.serve.replica.text_encoder import CachedTower
from workflows.serve.request.pictures import Generated
from workflows.serve.settings import ServeArgs
from workflows.towers.clip import load_clip

PROMPT = "a handwritten seven"
_MODEL = "tiny"


def raverse(*words: str) -> str:
    """What the command line prints; it must end with status 0."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, list(words))
    assert result.exit_code == 0, f"raverse {' '.join(words)}: {result.output}"
    return result.output


def help_of(*words: str) -> str:
    """The help text of the program, or of a verb, with single spaces."""
    return " ".join(raverse(*words, "--help").split())


class LocalEncoder:
    """Answers as the handle of the text encoder does."""

    def __init__(self, package: Path) -> None:
        self._tower = CachedTower(load_clip(clip_folder(package)).text)
        self.encode = self

    async def remote(self, _model: str, text: str) -> Any:
        return self._tower.encode([text])[0]


class LocalBackend:
    """A replica in this process, as the routes use it."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def generate(self, request: Any) -> Any:
        async for message in self._replica.generate(request):
            if isinstance(message, Generated):
                yield message

    async def model_card(self, alias: str | None = None) -> Any:
        return await self._replica.model_card(alias)

    async def loads(self) -> list[Any]:
        return [await self._replica.load()]


class Service:
    """The real routes over a real replica of a package; only the registry's answer is made up.

    Args:
        package: a folder.
    """

    def __init__(self, package: Path) -> None:
        args = ServeArgs(model=f"{_MODEL}/1", tracking_uri="http://unused", num_steps=4, poll_seconds=0.0)
        found = ResolvedModel(ModelVersion(_MODEL, "1", "", {}), package)
        with mock.patch.object(versions, "resolve", return_value=found):
            self._replica = Replica(args, LocalEncoder(package))  # type: ignore[arg-type]
        rules, metrics = AccessRules(KeyRing(()), "never"), IngressMetrics([_MODEL])
        self._api = http_api({_MODEL: LocalBackend(self._replica)}, rules, metrics)

    @property
    def page(self) -> str:
        """The page to try prompts."""
        return self._ask("GET", "/").text

    def field(self, name: str) -> dict[str, Any]:
        """What the OpenAPI document says of a field of a request."""
        schemas = self._ask("GET", "/openapi.json").json()["components"]["schemas"]
        assert name in schemas["EditForm"]["properties"], "edits are requests too"
        found: dict[str, Any] = schemas["GenerationRequest"]["properties"][name]
        return found

    def post(self, **fields: Any) -> httpx.Response:
        """Requests a picture."""
        return self._ask("POST", "/v1/images/generations", json=fields)

    def draw(self, **fields: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The pixels of a picture, and its settings in the answer."""
        answer = self.post(**fields)
        assert answer.status_code == 200, answer.text
        (picture,) = answer.json()["data"]
        return decode_png(base64.b64decode(picture["b64_json"])), answer.json()["settings"]

    def close(self) -> None:
        """Ends the engine's thread."""
        self._replica.stop()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._api)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())
