"""The embedding caches under a storage folder: what there is, what is damaged, what nothing needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from workflows.embed.manifest import MANIFEST_FILE, Manifest
from workflows.embed.store import ENCODER_FILE, STORE, CaptionStore, is_intact
from workflows.errors import InvalidData, MissingArtifact
from workflows.runtime.artifact import MARKER, find_artifact
from workflows.storage.mapped import MappedShard

Finding = tuple[Path, str]


@final
@dataclass(frozen=True)
class Item:
    """One line of `raverse cache list`.

    Attributes:
        name: path relative to the storage folder.
        rows: samples and captions, or encoded captions.
        size: bytes; None: its store cannot be reached.
        towers: model and storage type.
        used_by: caches of finished jobs that use these captions; None: it is such a cache itself.
        store: where its shards are; None: in its folder.
    """

    name: str
    rows: int
    size: int | None
    towers: str
    used_by: tuple[str, ...] | None
    store: str | None = None


def inventory(root: Path) -> list[Item]:
    """Caches of jobs, then shared captions."""
    manifests = dict(_manifests(root))
    caches = [
        Item(
            str(folder.relative_to(root)),
            sum(manifest.rows.values()),
            _cache_size(folder, manifest),
            f"{manifest.clip.get('model')} {manifest.dtype}",
            None,
            manifest.store,
        )
        for folder, manifest in manifests.items()
    ]
    stores = [
        Item(str(store.folder.relative_to(root)), _rows(store), _size(store.folder), _towers(store), used)
        for store in _stores(root)
        for used in [_users(root, store, manifests)]
    ]
    return caches + stores


def damaged_files(root: Path) -> list[tuple[str, str]]:
    """Shards of caches and parts of stores whose bytes are not what their hash says, or that cannot be read."""
    found: list[tuple[str, str]] = []
    for file in sorted(root.glob(f"artifacts/embed/*/{MANIFEST_FILE}")):
        try:
            manifest = Manifest.load(file.parent)
            place = manifest.place(file.parent)
            found += [(str(place / path), "missing or changed") for path in manifest.damaged(file.parent)]
        except InvalidData as error:
            found.append((str(file), str(error)))
    for store in _stores(root):
        found += [(str(part), "its bytes are not those of its name") for part in store.parts() if not is_intact(part)]
    return found


def prunable(root: Path) -> list[Finding]:
    """What nothing needs: half-written files, damaged parts, stores of towers that no finished job uses.

    So does the mark that a cache with damaged shards is finished: without it the next job makes them again.

    Raises:
        InvalidData: object storage with shards cannot be reached.
    """
    manifests = dict(_manifests(root))
    found: list[Finding] = [(path, "half written") for path in sorted((root / STORE).rglob("*.partial"))]
    found += [
        (folder / MARKER, "shards are missing or changed, and the next job makes them again")
        for folder, manifest in manifests.items()
        if manifest.damaged(folder)
    ]
    for store in _stores(root):
        if not _users(root, store, manifests):
            found.append((store.folder, "no finished job uses these towers"))
        else:
            found += [(part, "damaged") for part in store.parts() if not is_intact(part)]
    return found


def remove(path: Path) -> None:
    """Removes a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _manifests(root: Path) -> Iterator[tuple[Path, Manifest]]:
    for folder in sorted((root / "artifacts" / "embed").glob("*")):
        if find_artifact(folder) is not None:
            try:
                yield folder, Manifest.load(folder)
            except (InvalidData, MissingArtifact):
                continue


def _stores(root: Path) -> list[CaptionStore]:
    return [CaptionStore(folder) for folder in sorted((root / STORE).glob("*")) if folder.is_dir()]


def _users(root: Path, store: CaptionStore, manifests: dict[Path, Manifest]) -> tuple[str, ...]:
    return tuple(
        str(folder.relative_to(root))
        for folder, manifest in manifests.items()
        if CaptionStore.of(root, manifest.encoder_key).folder == store.folder
    )


def _rows(store: CaptionStore) -> int:
    rows = 0
    for part in store.parts():
        try:
            rows += MappedShard.open(part).rows
        except (OSError, InvalidData):
            continue
    return rows


def _towers(store: CaptionStore) -> str:
    try:
        values: dict[str, Any] = json.loads((store.folder / ENCODER_FILE).read_text())
        return f"{values['clip']['model']} {values['dtype']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


def _cache_size(folder: Path, manifest: Manifest) -> int | None:
    if manifest.store is None:
        return _size(folder)
    try:
        sizes = manifest.place(folder).sizes()
    except InvalidData:
        return None
    return sum(sizes.get(shard.path, 0) for shard in manifest.files)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
