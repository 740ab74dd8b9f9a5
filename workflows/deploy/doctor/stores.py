"""Checks of what a job reads and writes: its storage folder, the user's data, a bucket, the tracking server."""

from __future__ import annotations

import email.utils
import os
import time
import uuid
from collections.abc import Iterator
from typing import Final

import httpx

from workflows.config.schema import RunConfig
from workflows.deploy.doctor.findings import Finding, ok, problem
from workflows.errors import StorageUnwritable, TrackingUnreachable
from workflows.runtime.preflight import check_writable
from workflows.storage.place import filesystem_of, reason
from workflows.tracking.store import check_tracking

_MOST_SKEW: Final = 2.0
_SECONDS: Final = 5.0
_EXPERIMENTS: Final = "/api/2.0/mlflow/experiments/search?max_results=1"


def check_storage(config: RunConfig) -> Iterator[Finding]:
    """Whether artifacts and shards can be written, and the user's data read."""
    try:
        check_writable(config.root_folder)
        yield ok("storage", f"{config.root_folder} can be written")
    except StorageUnwritable as error:
        yield problem(
            "storage", str(error).partition(":")[0], "mend its permissions, or give --set storage.root=FOLDER"
        )
    if config.data.path is not None:
        yield check_readable(config.data.path)
    for store in dict.fromkeys((config.data.store, config.embed.store)):
        if store is not None:
            yield check_bucket(store)


def check_readable(place: str) -> Finding:
    """Whether something is there at a path or URL."""
    from pyarrow.fs import FileType

    try:
        files, path = filesystem_of(place)
        there = files.get_file_info([path])[0].type != FileType.NotFound
    except Exception as error:  # noqa: BLE001 - each kind of storage raises its own
        return problem("data", f"{place}: {reason(error)}", "give credentials to every node, or mend the URL")
    return ok("data", f"{place} is there") if there else problem("data", f"nothing at {place}", "mend data.path")


def check_bucket(url: str) -> Finding:
    """Writes a small object below a URL (`s3://`, `gs://`, a folder), reads it and takes it away."""
    remedy = "allow writing, reading and deleting there, or name another"
    try:
        files, folder = filesystem_of(url)
        path = f"{folder}/.raverse-{uuid.uuid4().hex}"
        with files.open_output_stream(path) as output:
            output.write(b"raverse")
        with files.open_input_stream(path) as written:
            same = written.read() == b"raverse"
        files.delete_file(path)
    except Exception as error:  # noqa: BLE001 - each kind of storage raises its own
        return problem("bucket", f"{url}: {reason(error)}", remedy)
    return ok("bucket", f"{url} can be written") if same else problem("bucket", f"{url} gave other bytes", remedy)


def check_tracking_server(uri: str) -> Iterator[Finding]:
    """Whether MLflow answers, asks for a password, and has the same time."""
    try:
        check_tracking(uri)
    except TrackingUnreachable as error:
        yield problem("tracking", str(error).partition(":")[0], "start it, or mend storage.tracking_uri")
        return
    if not uri.startswith(("http://", "https://")):
        yield ok("tracking", uri.partition("://")[0])
        return
    sent = time.time()
    try:
        answer = httpx.get(f"{uri}{_EXPERIMENTS}", timeout=_SECONDS, auth=_mlflow_user())
    except httpx.HTTPError as error:
        found = f"{uri}: {reason(error)}"
        yield problem("tracking", found, "it listens but does not answer as MLflow: look at its log")
        return
    yield _judge_answer(uri, answer)
    yield from _check_date(answer.headers.get("date"), (sent + time.time()) / 2)


def _judge_answer(uri: str, answer: httpx.Response) -> Finding:
    if answer.status_code in (401, 403):
        return problem("tracking", f"{uri} refuses us", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if not answer.is_success:
        return problem("tracking", f"{uri} answers {answer.status_code}", "is that MLflow's address? look at its log")
    return ok("tracking", f"{uri} answers")


def check_skew(where: str, seconds: float) -> Finding:
    """The difference of two clocks."""
    if abs(seconds) > _MOST_SKEW:
        return problem("clock", f"{where} is {seconds:+.1f} s off", "run an NTP client (chrony) on every machine")
    return ok("clock", f"{where}: {seconds:+.2f} s")


def _check_date(header: str | None, now: float) -> Iterator[Finding]:
    if header:
        # The header counts whole seconds, so its middle is half a second later.
        there = email.utils.parsedate_to_datetime(header).timestamp() + 0.5
        yield check_skew("the tracking server", there - now)


def _mlflow_user() -> tuple[str, str] | None:
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (name, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if name else None
