"""A folder, a bucket, and what fsspec knows: the same operations, and one sentence when something is wrong."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflows.storage.bucket import NAME, Bucket
from workflows.errors import InvalidData, StorageUnwritable
from workflows.storage.place import Place


@pytest.fixture(params=["path", "file://", "s3://", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> Place:
    urls = {
        "path": str(tmp_path / "place"),
        "file://": f"file://{tmp_path}/place",
        "s3://": bucket.url(f"place/{tmp_path.name}"),
        "memory://": f"memory://place/{tmp_path.name}",
    }
    return Place(urls[request.param])


def test_what_is_put_there_is_found_there(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    below = place / "key"
    assert below.sizes() == {}
    assert below.sha256("a/b.parquet") is None
    below.put(source, "a/b.parquet")
    assert below.sizes() == {"a/b.parquet": 7}
    assert below.sha256("a/b.parquet") == hashlib.sha256(b"content").hexdigest()
    assert place.sizes() == {"key/a/b.parquet": 7}
    source.write_bytes(b"more content")
    below.put(source, "a/b.parquet")
    with pickle.loads(pickle.dumps(below)).open("a/b.parquet") as file:
        assert file.read() == b"more content"


@pytest.mark.parametrize("url", ["hdfs:///a/b", "viewfs:///a/b", "file:///a/b", "s3://a/b", "gs://a/b/"])
def test_what_is_below_a_url_is_a_url(url: str) -> None:
    assert (Place(url) / "c").url == url.rstrip("/") + "/c"


def test_a_query_stays_at_the_end() -> None:
    assert (Place("s3://bucket/a/?region=x") / "key/b").url == "s3://bucket/a/key/b?region=x"
    assert (Place("s3://bucket?region=x") / "key").url == "s3://bucket/key?region=x"
    assert (Place("/a b/c#d") / "key").url == "/a b/c#d/key"


def test_a_refusal_is_told(refusing: str, tmp_path: Path) -> None:
    place, source = Place(f"s3://{NAME}/x?scheme=http&endpoint_override={refusing}"), tmp_path / "source"
    source.write_bytes(b"content")
    for asked in (lambda: place.sha256("a"), place.sizes):
        with pytest.raises(InvalidData, match=r"cannot read s3://shards/x.*ACCESS_DENIED.*lets you read$") as told:
            asked()
        assert "\n" not in str(told.value)
    with pytest.raises(
        StorageUnwritable, match=r"cannot write s3://shards/x/a.*ACCESS_DENIED.*lets you write$"
    ) as told:
        place.put(source, "a")
    assert "\n" not in str(told.value)


def test_an_endpoint_that_is_not_there_is_told() -> None:
    place = Place(f"s3://{NAME}/x?scheme=http&endpoint_override=127.0.0.1:9")
    with pytest.raises(InvalidData, match=r"cannot read s3://shards/x/a.*NETWORK_CONNECTION.*that it is reachable"):
        place.sha256("a")


def test_an_unknown_kind_of_url_is_told() -> None:
    with pytest.raises(InvalidData, match="cannot open no://where"):
        Place("no://where").sizes()


KILLED = """
import sys
from pathlib import Path
from workflows.storage.place import Place
Place(sys.argv[1]).put(Path(sys.argv[2]), "shard")
"""


def test_an_upload_that_was_killed_leaves_no_file(bucket: Bucket, tmp_path: Path) -> None:
    place, source = Place(bucket.url("upload")), tmp_path / "source"
    source.write_bytes(os.urandom(64 << 20))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, place.url, str(source)], cwd=Path(__file__).parents[3]
    ) as half:
        deadline = time.monotonic() + 60
        while "upload/shard" not in bucket.unfinished() and time.monotonic() < deadline:
            assert half.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        half.send_signal(signal.SIGKILL)
    assert "upload/shard" in bucket.unfinished()
    assert place.sizes() == {}
    assert place.sha256("shard") is None
    bucket.write("upload/shard", b"a part")
    place.put(source, "shard")
    assert bucket.client.head_object(Bucket=NAME, Key="upload/shard")["ContentLength"] == 64 << 20
