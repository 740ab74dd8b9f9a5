from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from workflows.embed.manifest import (
    Manifest,
    cache_key,
    caption_id,
    discard_damaged,
    discard_unlisted,
    encoder_key,
    normalise,
)
from workflows.errors import InvalidData, MissingArtifact
from workflows.storage.mapped import write_mapped
from workflows.towers.identity import ClipIdentity


@pytest.fixture
def identity(tiny_folder: Path) -> ClipIdentity:
    return ClipIdentity.load(tiny_folder)


def make(folder: Path) -> Manifest:
    table = pa.table({"x": [1, 2]})
    files = tuple(write_mapped(folder, f"{name}/shard.arrow", table, name) for name in ("captions", "train/images"))
    rows = {"train": 2, "held_out": 0, "captions": 2}
    manifest = Manifest(
        "key", "encoder", "data", {"model": "x"}, "float32", (1, 2, 3), rows, {"images": 2, "captions": 2}, files
    )
    manifest.save(folder)
    return manifest


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert manifest.shards("captions") == manifest.files[:1]
    assert manifest.damaged(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "int8"}, "says dtype 'int8'"),
        ({"rows": {"train": 20, "held_out": 0, "captions": 2}}, "lists 1 shards of 2 train/images, wanted 20"),
        ({"rows": {"held_out": 0, "captions": 2}}, "lacks a field"),
        ({"shard_rows": {"images": 0, "captions": 2}}, "lists 1 shards of 2 train/images, wanted 2 in shards of 0"),
        ({"shard_rows": {"images": 2}}, "lacks a field"),
        ({"rows": {"train": "2", "held_out": 0, "captions": 2}}, "lists 1 shards"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    replace(make(tmp_path), **changes).save(tmp_path)
    with pytest.raises(InvalidData, match=f"{told}.*run `raverse embed` again"):
        Manifest.load(tmp_path)


def test_a_manifest_that_lists_a_shard_twice_is_refused(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    rows = manifest.rows | {"captions": 4}
    replace(manifest, rows=rows, files=(manifest.files[0], *manifest.files)).save(tmp_path)
    with pytest.raises(InvalidData, match="lists shards of captions twice"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("outside", ["../victim", "{folder}/victim", "captions/../../victim"])
def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path: Path, outside: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "cache"
    victim.write_text("precious")
    manifest = make(folder)
    shard = replace(manifest.files[0], path=outside.format(folder=tmp_path))
    replace(manifest, files=(shard, *manifest.files[1:])).save(folder)
    with pytest.raises(InvalidData, match="outside its folder"):
        Manifest.load(folder)
    discard_damaged(folder)
    assert victim.read_text() == "precious"
    assert not (folder / "manifest.json").exists(), "the next run makes the cache again"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="raverse embed"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InvalidData, match="not JSON"):
        Manifest.load(tmp_path)
    for text in ("[]", "null", '{"format": 2}', '{"format": 2, "shape": [1], "files": [], "more": 1}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InvalidData, match="run `raverse embed` again"):
            Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(InvalidData, match="format 99, wanted 2"):
        Manifest.load(tmp_path)


def test_only_what_was_changed_is_discarded(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    path, other = (tmp_path / shard.path for shard in manifest.files)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert manifest.damaged(tmp_path) == [manifest.files[0].path]
    discard_damaged(tmp_path)
    assert not path.exists()
    assert other.exists()


def test_shards_of_other_input_do_not_stay(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    old = tmp_path / write_mapped(tmp_path, "captions/shard.arrow", pa.table({"x": [3]}), "captions").path
    discard_unlisted(tmp_path, manifest)
    assert not old.exists()
    assert manifest.damaged(tmp_path) == []


@pytest.mark.parametrize("field", ["weights_sha256", "config_sha256", "tokenizer", "context_length"])
def test_what_changes_an_embedding_changes_its_key(identity: ClipIdentity, field: str) -> None:
    changed = replace(identity, **{field: 99 if field == "context_length" else "other"})
    assert encoder_key(asdict(changed), "float32") != encoder_key(asdict(identity), "float32")


def test_keys_follow_dtype_data_and_caption_and_nothing_else(identity: ClipIdentity) -> None:
    key = encoder_key(asdict(identity), "float32")
    assert key == encoder_key(asdict(replace(identity, source="local-dir:/elsewhere", model="renamed")), "float32")
    assert key != encoder_key(asdict(identity), "float16")
    assert cache_key(key, "data") != cache_key(key, "other data")
    assert caption_id(key, "a  red\tcircle ") == caption_id(key, "a red circle") != caption_id(key, "a red square")
    assert caption_id(key, "a red circle") != caption_id("another encoder", "a red circle")


def test_composed_and_decomposed_letters_are_one_caption() -> None:
    assert normalise("cafe\u0301 au\n lait") == "caf\u00e9 au lait"
