"""The MLflow store: where it is, whether it answers, and a client of it.

The store is `storage.tracking_uri`, or a SQLite file under `storage.root` with its artifacts in a folder
beside it. `check_tracking` finds out within seconds, without MLflow, that a store cannot be used: MLflow's
own retries take minutes. MLflow is imported by the functions that need it, since that takes two seconds and
its telemetry must be off before.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from workflows.config.schema import RunConfig
from workflows.errors import TrackingUnreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SECONDS: Final = 5.0
_PORTS: Final = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SQLITE: Final = "sqlite:///"

# What the user has set stays. MLflow's own defaults (7 retries, 120 s each) take minutes to give up.
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri(config: RunConfig) -> str:
    """The job's store; a SQLite file is named by its absolute path, since workers change directory."""
    return _absolute(config.storage.tracking_uri or f"{_SQLITE}{config.root_folder / 'mlflow.db'}")


def artifact_location(config: RunConfig) -> str | None:
    """Where a new experiment keeps its files: a folder beside a SQLite store; a server decides for itself."""
    file = _sqlite_file(tracking_uri(config))
    return None if file is None else (file.parent / "mlartifacts").as_uri()


def store_folder(config: RunConfig) -> Path:
    """A folder that all drivers of a SQLite store share; for a server, that of this configuration's storage."""
    file = _sqlite_file(tracking_uri(config))
    return config.root_folder if file is None else file.parent


def check_tracking(uri: str) -> None:
    """Fails within seconds when the store cannot be used; does not import MLflow.

    Raises:
        TrackingUnreachable: nothing answers at a server's address, or a SQLite file cannot be written.
    """
    file = _sqlite_file(_absolute(uri))
    if file is not None:
        _check_sqlite(file)
        return
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme in ("", "file"):
        raise TrackingUnreachable(
            f"tracking store {uri} is a folder, which MLflow no longer writes: give sqlite:///FILE or http://HOST:PORT"
        )
    if scheme in _PORTS:
        _check_server(uri, parts.hostname, parts.port or _PORTS[scheme])


def open_client(uri: str) -> MlflowClient:
    """A client of the store, for runs and for registered models; makes a SQLite store that is not there yet.

    Raises:
        TrackingUnreachable: the store cannot be used.
    """
    check_tracking(uri)
    set_mlflow_environment()
    with reaching(uri):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def set_mlflow_environment() -> None:
    """Turns MLflow's telemetry off and its patience down; to be called before MLflow is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Says in one sentence what MLflow, its database or its server complained about.

    Raises:
        TrackingUnreachable: the block raised an error of one of them.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise TrackingUnreachable(f"MLflow's store {uri} refused ({first}): mend it, or give another") from error


def _absolute(uri: str) -> str:
    file = _sqlite_file(uri)
    return uri if file is None else f"{_SQLITE}{file}"


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix(_SQLITE)).absolute() if uri.startswith(_SQLITE) else None


def _check_sqlite(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(f"{file.parent} cannot be written")
        if not file.exists():
            return
        with contextlib.closing(sqlite3.connect(file, timeout=_SECONDS)) as store:
            store.execute("BEGIN IMMEDIATE")
            store.execute("SELECT count(*) FROM sqlite_master")
            store.rollback()
    except (OSError, sqlite3.Error) as error:
        raise TrackingUnreachable(
            f"MLflow's store {_SQLITE}{file} cannot be used ({error}): mend or move that file, "
            f"or give --set storage.tracking_uri=URI"
        ) from None


def _check_server(uri: str, host: str | None, port: int) -> None:
    try:
        socket.create_connection((host or "", port), timeout=_SECONDS).close()
    except OSError as error:
        raise TrackingUnreachable(
            f"no MLflow store answers at {uri} ({error}): start it (`mlflow server`), "
            f"or leave storage.tracking_uri out for a SQLite file"
        ) from None
