"""Small captioned data sets in each format, written for the tests: `python -m tests.workflows.data.samples_own DIR`."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLORS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 60, 220)}


def picture(number: int, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
    """A picture whose color follows its number, with a stripe that makes each different."""
    color = list(COLORS.values())[number % 3]
    pixels = np.full((size[1], size[0], 3), color, np.uint8)
    pixels[number // 3 % size[1]] = (number * 7) % 256
    pixels[-1, -1] = (number % 256, number // 256 % 256, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def caption(number: int) -> str:
    return f"a {list(COLORS)[number % 3]} field number {number % 6}"


def label(number: int) -> str:
    return list(COLORS)[number % 3]


def write_folder(folder: Path, count: int = 30, *, labels: bool = True) -> Path:
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(count):
        (folder / f"images/{number:04d}.png").write_bytes(picture(number))
        line = {"file_name": f"images/{number:04d}.png", "text": caption(number)}
        lines.append(json.dumps(line | ({"label": label(number)} if labels else {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_sidecar(folder: Path, count: int = 30, *, labels: bool = True) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(picture(number))
        (folder / f"{number:04d}.txt").write_text(f"{caption(number)}\nanother wording of {number % 3}\n")
        if labels:
            (folder / f"{number:04d}.cls").write_text(label(number))
    return folder


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members_of(number: int, *, labels: bool = True) -> list[tuple[str, bytes]]:
    found = [(f"{number:05d}.png", picture(number)), (f"{number:05d}.txt", caption(number).encode())]
    return [*found, (f"{number:05d}.cls", label(number).encode())] if labels else found


def write_webdataset(folder: Path, count: int = 30, *, labels: bool = True) -> Path:
    half = count // 2
    for shard, numbers in enumerate((range(half), range(half, count))):
        members = [member for number in numbers for member in members_of(number, labels=labels)]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def write_parquet(folder: Path, count: int = 30, *, labels: bool = True, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    numbers = range(first, first + count)
    columns: dict[str, object] = {
        "image": [picture(number) for number in numbers],
        "captions": [[caption(number), f"another wording of {number % 3}"] for number in numbers],
    }
    if labels:
        columns["label"] = [label(number) for number in numbers]
    pq.write_table(pa.table(columns), folder / "part.parquet", row_group_size=10)
    return folder


def write_hf_parquet(folder: Path, count: int = 30, *, labels: bool = True) -> Path:
    folder.mkdir(parents=True)
    columns: dict[str, object] = {
        "image": [{"bytes": picture(number), "path": f"{number}.png"} for number in range(count)],
        "text": [caption(number) for number in range(count)],
    }
    metadata = {}
    if labels:
        columns["label"] = [number % 3 for number in range(count)]
        names = {"_type": "ClassLabel", "names": list(COLORS)}
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": names}}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "0000.parquet", row_group_size=10)
    return folder


def write_lance(folder: Path, count: int = 30, *, labels: bool = True) -> Path:
    """Two fragments, the second appended."""
    import lance

    half = count // 2
    for numbers in (range(half), range(half, count)):
        columns: dict[str, object] = {
            "image": [picture(number) for number in numbers],
            "caption": [caption(number) for number in numbers],
        }
        if labels:
            columns["label"] = [label(number) for number in numbers]
        lance.write_dataset(pa.table(columns), folder, mode="append" if folder.exists() else "create")
    return folder


def write_vectors(folder: Path, count: int = 300, *, captions: bool = True) -> Path:
    """Three classes of four numbers: a blob each, of which one number is constant and one has a large mean."""
    folder.mkdir(parents=True)
    rng, labels = np.random.default_rng(0), np.arange(count) % 3
    columns: dict[str, object] = {
        "length": rng.normal(3.0 * labels, 0.5),
        "width": rng.normal(-2.0 * labels, 0.3),
        "year": (2000 + rng.integers(0, 20, count)).astype(np.int32),
        "constant": np.full(count, 7.0, np.float32),
        "label": [label(number) for number in range(count)],
    }
    if captions:
        columns["caption"] = [f"a {label(number)} one" for number in range(count)]
    pq.write_table(pa.table(columns), folder / "part.parquet", row_group_size=100)
    return folder


WRITERS = {
    "folder": write_folder,
    "sidecar": write_sidecar,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "hf_parquet": write_hf_parquet,
    "lance": write_lance,
}


if __name__ == "__main__":
    for name, write in WRITERS.items():
        sys.stdout.write(f"{write(Path(sys.argv[1]) / name)}\n")
