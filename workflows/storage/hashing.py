"""SHA-256 of files, as 64 hexadecimal digits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return stream_sha256(file)


def stream_sha256(file: Any) -> str:
    """SHA-256 of what an open binary file, also one of pyarrow, holds from here on; 256 KiB are in memory."""
    return hashlib.file_digest(file, "sha256").hexdigest()
