from __future__ import annotations

import hashlib
import io
from pathlib import Path

from workflows.storage.hashing import file_sha256, stream_sha256


def test_the_published_value_of_abc(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == stream_sha256(io.BytesIO(b"abc")) == known


def test_a_file_of_many_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "long").write_bytes(data)
    assert file_sha256(tmp_path / "long") == hashlib.sha256(data).hexdigest()
