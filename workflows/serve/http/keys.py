"""API keys: only their hashes are stored, and a comparison takes the same time for every key.

A line of the file, or of the environment variable `RAVERSE_API_KEYS` (there separated by commas), is

    NAME SHA256 [REQUESTS_PER_MINUTE]

A key is 32 random bytes, so a plain hash of it cannot be searched.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from workflows.errors import InvalidConfig, Overloaded, Unauthorized

VARIABLE: Final = "RAVERSE_API_KEYS"
_PREFIX: Final = "rv-"
_LINE: Final = re.compile(r"(?P<name>[A-Za-z0-9_.@-]+)\s+(?P<hash>[0-9a-f]{64})(?:\s+(?P<rate>[0-9]+))?")
_MINUTE: Final = 60.0


@final
@dataclass(frozen=True)
class ApiKey:
    """A known key.

    Attributes:
        name: the key's name in logs.
        digest: SHA-256 of the key, hexadecimal.
        per_minute: requests per minute that it may send; None means no limit.
    """

    name: str
    digest: str
    per_minute: int | None


def new_key(name: str, per_minute: int | None = None) -> tuple[str, str]:
    """Makes a key, and the line of it to store.

    Raises:
        InvalidConfig: a name with other characters than letters, digits, and _ . @ -
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {_digest(key)}" + (f" {per_minute}" if per_minute else "")
    if not _LINE.fullmatch(line):
        raise InvalidConfig(f"found the name {name!r}, wanted letters, digits, and _ . @ -")
    return key, line


def load_keys(file: str | None, environment: Mapping[str, str] = os.environ) -> tuple[ApiKey, ...]:
    """Loads the keys of the file and of the environment.

    Raises:
        InvalidConfig: a file that cannot be read, or a line that is no key; the message does not quote the line.
    """
    lines = environment.get(VARIABLE, "").split(",")
    if file is not None:
        try:
            lines += Path(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"cannot read the API keys in {file} ({error}): see `raverse api-key`") from error
    entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return tuple(_read(line, number) for number, line in enumerate(entries, start=1))


@final
class KeyRing:
    """The known keys, and the requests that each may still send; every ingress replica counts for itself.

    Args:
        keys: all known keys.
    """

    def __init__(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = keys
        self._allowance: dict[str, tuple[float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, authorization: str, now: float | None = None) -> str:
        """Returns the name of the key in an `Authorization` header, and takes one request off its allowance.

        Raises:
            Unauthorized: the header holds no key, or an unknown one.
            Overloaded: the key has sent too many requests; `retry_after` is the time until the next is allowed.
        """
        scheme, _, key = authorization.strip().partition(" ")
        digest = _digest(key.strip()) if scheme.lower() == "bearer" else ""
        # Every key is compared, so that the time does not depend on the key that matches.
        matches = [known for known in self._keys if hmac.compare_digest(known.digest, digest)]
        if not matches:
            raise Unauthorized("no API key, or an unknown one: send `Authorization: Bearer KEY`")
        self._take_one(matches[0], time.monotonic() if now is None else now)
        return matches[0].name

    def _take_one(self, key: ApiKey, now: float) -> None:
        if key.per_minute is None:
            return
        left, since = self._allowance.get(key.name, (float(key.per_minute), now))
        left = min(float(key.per_minute), left + (now - since) * key.per_minute / _MINUTE)
        if left < 1.0:
            self._allowance[key.name] = (left, now)
            wait = (1.0 - left) * _MINUTE / key.per_minute
            raise Overloaded(f"this key may send {key.per_minute} requests a minute: try again in {wait:.0f} s", wait)
        self._allowance[key.name] = (left - 1.0, now)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def _read(line: str, number: int) -> ApiKey:
    match = _LINE.fullmatch(line)
    if match is None:
        raise InvalidConfig(f"API key {number} is no `NAME SHA256 [REQUESTS_PER_MINUTE]`: see `raverse api-key`")
    return ApiKey(match["name"], match["hash"], int(match["rate"]) if match["rate"] else None)
