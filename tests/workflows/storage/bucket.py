"""A bucket of a real S3 server on the loopback interface."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

NAME = "shards"


@dataclass(frozen=True)
class Bucket:
    """The bucket's server; every upload makes a version, so that none goes unseen."""

    address: str
    client: Any

    def url(self, path: str) -> str:
        """As a user writes it."""
        return f"s3://{NAME}/{path}?scheme=http&endpoint_override={self.address}"

    def versions(self, path: str) -> dict[str, int]:
        """How often each object below a path was uploaded."""
        found: dict[str, int] = {}
        for page in self.client.get_paginator("list_object_versions").paginate(Bucket=NAME, Prefix=path):
            for version in page.get("Versions", []):
                found[version["Key"]] = found.get(version["Key"], 0) + 1
        return found

    def read(self, key: str) -> bytes:
        """An object's content."""
        return bytes(self.client.get_object(Bucket=NAME, Key=key)["Body"].read())

    def write(self, key: str, data: bytes) -> None:
        """Puts an object."""
        self.client.put_object(Bucket=NAME, Key=key, Body=data)

    def remove(self, key: str) -> None:
        """Removes an object."""
        self.client.delete_object(Bucket=NAME, Key=key)

    def unfinished(self) -> list[str]:
        """Objects whose upload has begun."""
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket=NAME).get("Uploads", [])]


@contextlib.contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """Starts the server, and ends it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket=NAME)
    client.put_bucket_versioning(Bucket=NAME, VersioningConfiguration={"Status": "Enabled"})
    yield Bucket(f"{host}:{port}", client)
    server.stop()


class Refusing(http.server.BaseHTTPRequestHandler):
    """An S3 server that lets nobody in."""

    def refuse(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = refuse  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve_refusals() -> Iterator[str]:
    """The address of a server that refuses everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
