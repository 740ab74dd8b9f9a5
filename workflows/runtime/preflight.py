"""Checks made before any work begins, so that a job does not fail late for a reason known early."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from workflows.config.schema import RunConfig
from workflows.errors import AddressInUse, StorageUnwritable
from workflows.runtime.session import cluster_address

_LEAST_FREE_BYTES: Final = 256 * 2**20


@contextlib.contextmanager
def exclusive_storage(config: RunConfig) -> Iterator[None]:
    """Holds the storage folder for one run; the system lets go of it however the process ends.

    Raises:
        StorageUnwritable: the folder cannot be written, is full, or another run works in it.
    """
    with exclusive_folder(config.root_folder):
        yield


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """As `exclusive_storage`, for a storage folder given by its path.

    Raises:
        StorageUnwritable: the folder cannot be written, is full, or another run works in it.
    """
    check_writable(folder)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise StorageUnwritable(
                f"{folder} is in use by another run (process {owner}): wait for it, or give --set storage.root=FOLDER"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def check_writable(folder: Path) -> None:
    """Makes the folder and writes into it.

    Raises:
        StorageUnwritable: that fails, or less than 256 MiB are free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageUnwritable(
            f"cannot write into {folder} ({error.strerror}): make room there, or give --set storage.root=FOLDER"
        ) from None
    if free < _LEAST_FREE_BYTES:
        raise StorageUnwritable(
            f"{folder} has {free / 2**20:.0f} MiB free, wanted {_LEAST_FREE_BYTES / 2**20:.0f}: "
            f"make room there, or give --set storage.root=FOLDER"
        )


def check_port(config: RunConfig) -> None:
    """Looks whether the service's port is free; on a cluster the port is not on this machine.

    Raises:
        AddressInUse: another process listens there, or the host is not this machine's.
    """
    if cluster_address() is None:
        check_free(config.serve.host, config.serve.port)


def check_metrics_port(config: RunConfig) -> None:
    """Looks whether the port of the metrics is free, where Ray is one's own.

    Raises:
        AddressInUse: another process listens there.
    """
    if cluster_address() is None:
        check_free("127.0.0.1", config.serve.metrics_port, "metrics_port")


def check_free(host: str, port: int, setting: str = "port") -> None:
    """Looks whether this machine can listen at an address.

    Args:
        host: an address of this machine.
        port: to listen at.
        setting: the setting of `serve` that holds the port.

    Raises:
        AddressInUse: another process listens there, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise AddressInUse(
            f"cannot serve on {host}:{port} ({error.strerror}): stop what listens there, "
            f"or give --set serve.{setting}=PORT"
        ) from None
