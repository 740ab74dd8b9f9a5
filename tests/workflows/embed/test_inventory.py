"""`raverse cache`: list, verify, prune."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from workflows.cli import app as cli
from workflows.embed.manifest import Manifest
from workflows.embed.store import CaptionStore, is_intact
from workflows.errors import StorageUnwritable
from workflows.runtime.artifact import Artifact
from workflows.storage.mapped import write_mapped

A, B, C = (bytes([number]) * 16 for number in range(3))
TABLE = pa.table({"caption_id": pa.array([A, B], pa.binary(16)), "caption": ["x", "y"]})
SIZES = {"images": 1, "captions": 2}


def cache(root: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.app, ["cache", *words, "--root", str(root)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One finished cache whose towers have one part of captions, and a part of towers that nothing uses."""
    folder = tmp_path / "artifacts/embed/0123"
    shard = write_mapped(folder, "captions/shard-000000.arrow", TABLE, "key")
    rows = {"train": 0, "held_out": 0, "captions": 2}
    Manifest("k" * 64, "used" * 16, "d", {"model": "tiny"}, "float32", (1, 8, 8), rows, SIZES, (shard,)).save(folder)
    Artifact("embed", "0123", folder).commit()
    used = CaptionStore.of(tmp_path, "used" * 16)
    used.add(TABLE)
    used.describe({"model": "tiny"}, "float32")
    CaptionStore.of(tmp_path, "idle" * 16).add(TABLE)
    return tmp_path


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)


def test_list_shows_caches_and_shared_captions(root: Path) -> None:
    output = cache(root, "list").output
    assert "artifacts/embed/0123" in output
    assert "tiny float32" in output
    assert "cache/captions/usedusedusedused" in output.replace("\n", "")
    assert cache(root / "nowhere", "list").exit_code == 0


def test_verify_finds_what_changed(root: Path) -> None:
    assert cache(root, "verify").exit_code == 0
    (shard,) = root.glob("artifacts/embed/0123/captions/shard-000000-*.arrow")
    part = CaptionStore.of(root, "used" * 16).parts()[0]
    damage(shard)
    damage(part)
    result = cache(root, "verify")
    assert result.exit_code == 1
    assert str(shard) in result.output
    assert str(part) in result.output
    assert "2 damaged" in result.output


def test_prune_removes_what_nothing_needs(root: Path) -> None:
    used, idle = (CaptionStore.of(root, name * 16) for name in ("used", "idle"))
    (used.folder / "0.partial").write_bytes(b"half")
    damage(used.parts()[0])
    used.add(TABLE.slice(1))
    kept = [part for part in used.parts() if is_intact(part)]
    assert cache(root, "prune", "--dry-run").output.count("would remove") == 3
    assert idle.folder.is_dir()
    result = cache(root, "prune")
    assert result.exit_code == 0
    assert "3 removed" in result.output
    assert not idle.folder.exists()
    assert used.parts() == kept
    assert not list(used.folder.glob("*.partial"))
    assert cache(root, "verify").exit_code == 0
    assert cache(root, "prune").output == "0 removed\n"


def test_a_part_lies_under_its_hash_and_gives_the_rows_that_it_has(tmp_path: Path) -> None:
    store = CaptionStore.of(tmp_path, "e" * 64)
    part = store.add(TABLE)
    assert store.add(TABLE) == part
    assert is_intact(part)
    names, places = store.find(pa.array([C, B, A], pa.binary(16)))
    assert (names, places.tolist()) == ([part.name], [-1, 0, 0])
    found = store.take([part.name], [B, C])
    assert found is not None
    assert found["caption"].to_pylist() == ["y"]
    damage(part)
    assert store.take([part.name], [A]) is None
    assert store.parts() == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(StorageUnwritable, match=r"storage\.root"):
        CaptionStore.of(tmp_path, "e" * 64).add(TABLE)
    with pytest.raises(StorageUnwritable, match=r"storage\.root"):
        CaptionStore.of(tmp_path, "e" * 64).describe({}, "float32")
