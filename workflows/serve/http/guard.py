"""The checks before the routes: API keys and the largest body; and headers that keep browsers safe."""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias, final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion_core.errors import RaverseError
from workflows.errors import InvalidRequest, Overloaded, Unauthorized
from workflows.serve.http.errors import CLIENT_LEFT, error_answer, status_of, unwrap
from workflows.serve.http.keys import KeyRing

Ended: TypeAlias = Callable[[Scope, int, float], None]

# The page and the health routes show nothing that a key protects, and the page has a field for the key.
_OPEN_PATHS: Final = frozenset({"/", "/health", "/healthz", "/docs", "/openapi.json"})
# Orchestrators ask for health by an address.
_PROBED: Final = frozenset({"/health", "/healthz"})
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
RECORDED: Final = "recorded"
"""The entry in a scope's state that says that the request's end is in log and metrics already."""
DOOR_HEADER: Final = "x-raverse-door"
CAPACITY_HEADER: Final = "x-raverse-capacity"
_REFUSED: Final = 400
_HEAD: Final = "HEAD"
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
        max_requests: requests that are open at once.
        allowed_hosts: names in the `Host` header under which the service is asked; none given: any name where clients
            need keys, and the names of this machine where it is answered without one.
    """

    keys: KeyRing
    require_key: Literal["unless_loopback", "always", "loopback_only", "never"] = "unless_loopback"
    max_body_bytes: int = 16_000_000
    max_requests: int = 1000
    allowed_hosts: tuple[str, ...] = ()

    def check_names(self, headers: Headers) -> None:
        """Refuses requests that a page of another site makes in a browser on this machine.

        A page can point its own name at this machine (DNS rebinding); then `Host` holds that name. Or it asks this
        machine directly; then `Origin` holds its name.

        Raises:
            InvalidRequest: the name is not one of this service.
        """
        trusting = self.require_key == "loopback_only" or (self.require_key == "unless_loopback" and not self.keys)
        if not self.allowed_hosts and not trusting:
            return
        for header in ("host", "origin"):
            text = headers.get(header, "")
            name = urlsplit(text if "//" in text else f"//{text}").hostname or ""
            if (text or header == "host") and not self._is_own(name):
                raise InvalidRequest(
                    f"header {header.title()}: this service is not {text[:80]!r}: ask by the name under which it was "
                    "started, or add it to serve.allowed_hosts"
                )

    def _is_own(self, name: str) -> bool:
        return name in self.allowed_hosts or "*" in self.allowed_hosts or is_loopback(name)

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
        ended: records a request that was refused before its route recorded it: its scope, status, and seconds.
        capacities: the room of the samplers, as the value of a header.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules, ended: Ended, capacities: Callable[[], str]) -> None:
        self._app, self._rules, self._ended, self._capacities = app, rules, ended, capacities
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, partial(self._told, scope), bodiless=scope["method"] == _HEAD)
        started = time.monotonic()
        self._num_open += 1
        try:
            await self._pass(scope, receive, answer)
        finally:
            self._num_open -= 1
            if answer.status >= _REFUSED and RECORDED not in scope.get("state", {}):
                self._ended(scope, answer.status, time.monotonic() - started)

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            self._check(scope)
        except (RaverseError, _TooLarge) as error:
            await _refuse(error, answer.send)
            return
        limit = _Limit(receive, answer.send, self._rules.max_body_bytes)
        try:
            # A route that answers GET answers HEAD too; `_Answer` leaves its body out.
            asked = {**scope, "method": "GET"} if scope["method"] == _HEAD else scope
            await self._app(asked, limit.receive, limit.send)
        # Starlette's own handler of unknown errors runs outside this middleware, where no header is added.
        except Exception as error:  # noqa: BLE001
            left = status_of(unwrap(error)) == CLIENT_LEFT
            if not limit.exceeded and not left:
                _LOG.exception("%s %s failed", scope["method"], scope["path"])
            # An answer that has begun cannot become another one, and a client who left reads none.
            if not limit.exceeded and not limit.answered and not left:
                await _refuse(error, answer.send)
        if limit.exceeded and not limit.answered:
            await _refuse(_TooLarge(self._rules.max_body_bytes), answer.send)

    def _told(self, scope: Scope) -> dict[str, str]:
        """The headers of every answer, and for the door before this service the room that it has."""
        asked = any(name == DOOR_HEADER.encode() for name, _ in scope["headers"])
        return _HEADERS | ({CAPACITY_HEADER: self._capacities()} if asked else {})

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._rules.max_body_bytes:
            raise _TooLarge(self._rules.max_body_bytes)
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if path not in _PROBED:
            self._rules.check_names(headers)
        if path not in _OPEN_PATHS:
            if self._num_open > self._rules.max_requests:
                raise Overloaded(f"{self._num_open - 1} requests are open, of at most {self._rules.max_requests}", 1.0)
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


@final
class _Answer:
    """Adds headers to an answer, and remembers its status."""

    def __init__(self, send: Send, headers: Callable[[], Mapping[str, str]], *, bodiless: bool) -> None:
        self._send, self._headers, self._bodiless = send, headers, bodiless
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._headers().items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", _POLICY)
        elif self._bodiless:
            message = {**message, "body": b""}
        await self._send(message)


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
