"""Generated passwords and keys, in one file that only its owner reads.

The file has lines `NAME=VALUE`, as kustomize's `secretGenerator` and a shell take them. An existing file is kept:
the passwords in it are those of databases that are there.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from workflows.errors import InvalidConfig
from workflows.serve.http.keys import VARIABLE, new_key

API_KEY: Final = "RAVERSE_API_KEY"
"""The key itself; the service knows its hash only."""
_BYTES: Final = 24
_USER: Final = "admin"


def secrets_file(file: Path) -> dict[str, str]:
    """Reads the file, or makes it with fresh values.

    Raises:
        InvalidConfig: a file that others may read, or that lacks a value.
    """
    if not file.exists():
        _write(file, fresh_secrets())
    if file.stat().st_mode & 0o077:
        raise InvalidConfig(f"{file} holds passwords and can be read by others: `chmod 600 {file}`")
    pairs = [line.partition("=") for line in file.read_text().splitlines() if line and not line.startswith("#")]
    values = {name: value for name, _, value in pairs}
    if missing := sorted(fresh_secrets().keys() - values.keys()):
        raise InvalidConfig(f"{file} lacks {', '.join(missing)}: add them, or move the file away for a fresh one")
    return values


def fresh_secrets() -> dict[str, str]:
    """New values of everything that a deployment keeps secret."""
    key, line = new_key("first")
    return {
        "POSTGRES_PASSWORD": _password(),
        "REDIS_PASSWORD": _password(),
        "MLFLOW_TRACKING_USERNAME": _USER,
        "MLFLOW_TRACKING_PASSWORD": _password(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _password(),
        "RAY_AUTH_TOKEN": _password(),
        VARIABLE: line,
        API_KEY: key,
    }


def _password() -> str:
    return secrets.token_urlsafe(_BYTES)


def _write(file: Path, values: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.writelines(f"{name}={value}\n" for name, value in values.items())
