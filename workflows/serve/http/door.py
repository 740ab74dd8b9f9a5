"""The door before the service: middleware in the process that takes HTTP connections, which refuses a burst at once.

Ray Serve passes every request from its proxy to the ingress, which takes a few milliseconds of a processor. In a burst
of thousands a refusal by the ingress would wait for all requests before it. So the proxy keeps an account of its own.
Every answer of the ingress tells it the room of the samplers, in a header that the door takes off.

Ray Serve loads it in each proxy by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=workflows.serve.http.door:middleware`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final, final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workflows.errors import Overloaded
from workflows.serve.http.account import Capacity, WorkAccount, work_of
from workflows.serve.http.errors import error_answer
from workflows.serve.http.guard import CAPACITY_HEADER, DOOR_HEADER

_PICTURES: Final = re.compile(r"(?P<prefix>.*)/v1/images/(generations|edits)")
_MOST_READ: Final = 65536
_LOG: Final = logging.getLogger("ray.serve")


def middleware() -> list[Middleware]:
    """The middleware of Ray Serve's proxy."""
    return [Middleware(Door)]


@final
class Door:
    """ASGI middleware that lets in only what the samplers have room for.

    It holds up to 64 kB of the body of a request that it lets in, and three numbers per open request.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # By the prefix of the application's paths; then by model, the default first.
        self._accounts: dict[str, dict[str, WorkAccount]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pictures = _PICTURES.fullmatch(scope["path"]) if scope["method"] == "POST" else None
        asked = {**scope, "headers": [*scope["headers"], (DOOR_HEADER.encode(), b"1")]}
        if pictures is None:
            prefix = scope["path"].partition("/v1/")[0].rstrip("/")
            await self._app(asked, receive, self._learning(prefix, send))
            return
        prefix = pictures["prefix"]
        body, replay = await _read(scope, receive)
        with ExitStack() as open_work:
            try:
                self._enter(prefix, body, open_work)
            except Overloaded as error:
                await _refuse(error, send)
                return
            await self._app(asked, replay, self._learning(prefix, send))

    def _enter(self, prefix: str, body: Mapping[str, Any], open_work: ExitStack) -> None:
        """Enters the request into the account of its model; one whose model is not known yet is let through."""
        accounts = self._accounts.get(prefix, {})
        name = str(body.get("model") or next(iter(accounts), "")).partition("@")[0]
        if (account := accounts.get(name)) is not None:
            open_work.enter_context(account.entered(work_of(body, account.capacity)))

    def _learning(self, prefix: str, send: Send) -> Send:
        """Takes the capacities out of an answer's headers."""

        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers, kept = message.get("headers", ()), []
                for name, value in headers:
                    if bytes(name).lower() == CAPACITY_HEADER.encode():
                        self._learn(prefix, value)
                    else:
                        kept.append((name, value))
                message = {**message, "headers": kept}
            await send(message)

        return wrapped

    def _learn(self, prefix: str, value: bytes) -> None:
        accounts = self._accounts.setdefault(prefix, {})
        for name, fields in json.loads(value).items():
            capacity = Capacity(**fields)
            if name not in accounts:
                accounts[name] = WorkAccount(capacity)
            elif accounts[name].capacity != capacity:
                accounts[name].capacity = capacity


async def _read(scope: Scope, receive: Receive) -> tuple[Mapping[str, Any], Receive]:
    """Reads the fields of a JSON body, as far as it is small; returns them, and what gives the same messages again."""
    messages: list[Message] = []
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    size, more = 0, bool(kinds) and b"json" in kinds[0]
    while more and size <= _MOST_READ:
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        more = messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False)
    body = b"".join(message.get("body", b"") for message in messages)
    left = iter(messages)

    async def replay() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return ({} if more else _fields(body)), replay


def _fields(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        # The ingress says what is wrong with it.
        return {}
    return found if isinstance(found, dict) else {}


async def _refuse(error: Overloaded, send: Send) -> None:
    status, answer, headers = error_answer(error)
    content = answer.model_dump_json().encode()
    pairs = {"content-type": "application/json", "content-length": str(len(content)), "cache-control": "no-store"}
    raw = [(name.lower().encode(), value.encode()) for name, value in (pairs | headers).items()]
    _LOG.info("%s", json.dumps({"event": "refused", "status": status, "retry_after": headers["Retry-After"]}))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
