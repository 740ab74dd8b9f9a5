"""An S3 server on this machine that waits before each answer, and counts what is read."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from workflows.embed.manifest import Manifest


@dataclass
class Served:
    """Counts the requests of a server."""

    requests: Counter[str] = field(default_factory=Counter)
    """How often each object was read from its beginning."""


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the objects in a folder, with ranges: what a reader of shards asks S3."""

    protocol_version = "HTTP/1.1"
    folder: ClassVar[Path]
    delay: ClassVar[float]
    served: ClassVar[Served]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        time.sleep(self.delay)
        path = self.folder / self.path.split("?")[0].lstrip("/").partition("/")[2]
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(wanted[1]), int(wanted[2] or size - 1) + 1) if wanted else (0, size)
        stop = min(stop, size)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if body:
            if start == 0:
                self.served.requests[path.name] += 1
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(stop - start))

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def slow_bucket(folder: Path, remote: Path, delay: float) -> Iterator[Served]:
    """Serves the shards of the cache in `folder`, and writes its manifest to `remote` with this store."""
    from workflows.storage.hashing import file_sha256

    manifest = Manifest.load(folder)
    served = Served()
    handler = type("Handler", (_Handler,), {"folder": folder, "delay": delay, "served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"s3://bucket?scheme=http&endpoint_override=127.0.0.1:{server.server_address[1]}&region=us-east-1"
        files = tuple(replace(shard, sha256=file_sha256(folder / shard.path)) for shard in manifest.files)
        remote.mkdir()
        replace(manifest, store=url, files=files).save(remote)
        yield served
        server.shutdown()
