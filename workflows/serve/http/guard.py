"""The checks before the routes: API keys and the largest body; and headers that keep browsers safe."""

from __future__ import annotations

import ipaddress
import json
import logging
from dataclasses import dataclass
from typing import Final, Literal, final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion_core.errors import RaverseError
from workflows.errors import InvalidRequest, Unauthorized
from workflows.serve.http.errors import error_answer
from workflows.serve.http.keys import KeyRing

# The page and the health routes show nothing that a key protects, and the page has a field for the key.
_OPEN_PATHS: Final = frozenset({"/", "/health", "/healthz", "/docs", "/openapi.json"})
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOG: Final = logging.getLogger("ray.serve")
_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"


@final
@dataclass(frozen=True)
class AccessRules:
    """The rules that every request must meet.

    Attributes:
        keys: the known API keys.
        require_key: `always`: every client needs a key; `never`: none does; `loopback_only`: only this machine is
            answered, without a key; `unless_loopback`: `always` where there are keys, else `loopback_only`.
        max_body_bytes: largest body of a request.
    """

    keys: KeyRing
    require_key: Literal["unless_loopback", "always", "loopback_only", "never"] = "unless_loopback"
    max_body_bytes: int = 16_000_000

    def admit(self, authorization: str, client: str | None) -> str:
        """Returns the name of the client's key, `loopback` for this machine, or `anyone`.

        Raises:
            Unauthorized: the client needs a key and sends none that is known.
            Overloaded: the key has sent too many requests.
        """
        if self.require_key == "never":
            return "anyone"
        if self.require_key == "always" or (self.keys and self.require_key != "loopback_only"):
            return self.keys.admit(authorization)
        if not is_loopback(client):
            raise Unauthorized(
                "this service has no API keys and answers its own machine only: make one with `raverse api-key`"
            )
        return "loopback"


@final
class Guard:
    """ASGI middleware that passes only the requests that meet the rules.

    Args:
        app: the application behind it.
        rules: the rules.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        safe = _with_headers(send)
        try:
            self._check(scope)
        except (RaverseError, _TooLarge) as error:
            await _refuse(error, safe)
            return
        limit = _Limit(receive, safe, self._rules.max_body_bytes)
        try:
            await self._app(scope, limit.receive, limit.send)
        # Starlette's own handler of unknown errors runs outside this middleware, where no header is added.
        except Exception as error:
            if limit.answered:
                raise
            if not limit.exceeded:
                _LOG.exception("%s %s failed", scope["method"], scope["path"])
                await _refuse(error, safe)
        if limit.exceeded and not limit.answered:
            await _refuse(_TooLarge(self._rules.max_body_bytes), safe)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._rules.max_body_bytes:
            raise _TooLarge(self._rules.max_body_bytes)
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if path not in _OPEN_PATHS:
            client = scope.get("client")
            name = self._rules.admit(headers.get("authorization", ""), client[0] if client else None)
            scope.setdefault("state", {})["key_name"] = name


@final
class _TooLarge(Exception):
    """The body of a request is larger than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


@final
class _Limit:
    """Counts the bytes of a body as they arrive, whatever its headers declare."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._limit, self._num_bytes = receive, send, limit, 0
        self.answered = self.exceeded = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limit:
            self.exceeded = True
            raise _TooLarge(self._limit)
        return message

    async def send(self, message: Message) -> None:
        # The routes' answer to a body that was cut is dropped.
        if self.answered or not self.exceeded:
            self.answered = True
            await self._send(message)


def is_loopback(host: str | None) -> bool:
    """Whether an address or a host name belongs to this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", _POLICY)
        await send(message)

    return wrapped


async def _refuse(error: Exception, send: Send) -> None:
    if isinstance(error, _TooLarge):
        _, body, headers = error_answer(InvalidRequest(f"the body is larger than {error.limit} bytes: send less"))
        status = 413
    else:
        status, body, headers = error_answer(error)
    content = json.dumps(body.model_dump()).encode()
    pairs = {"content-type": "application/json", "content-length": str(len(content))} | headers
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
