"""What a cache holds and what it was made from.

    encoder key = sha256(weights, architecture, tokenizer, context length, layer, pooling, dtype, version)
    caption id  = sha256(encoder key, normalised caption)
    cache key   = sha256(encoder key, data hash, layout version)

Batch size and number of workers are no part of a key, because they do not change what is written.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

from workflows.config.schema import EmbedMode
from workflows.errors import InvalidData, MissingArtifact
from workflows.storage.atomic import write_whole
from workflows.storage.mapped import ENDING, path_of
from workflows.storage.place import READERS, Place
from workflows.storage.shards import Shard

MANIFEST_FILE: Final = "manifest.json"
FORMAT_VERSION: Final = 2
DTYPES: Final = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""The type as which numpy reads the tokens of each storage type; it has no bfloat16, so they are its 16 bits."""
ID_BYTES: Final = 16
_LAYER: Final = "last block, final layer norm, zero after the end of the caption"
_POOLING: Final = "projected, unit length"


@final
@dataclass(frozen=True)
class Manifest:
    """Written last, as `manifest.json`; a cache without one is not finished.

    Attributes:
        key: of the cache.
        encoder_key: of the text tower.
        data_hash: of the data artifact.
        clip: the towers' identity.
        dtype: storage type of the tokens.
        shape: (c, h, w) of every image, or (d,) of vectors.
        rows: samples per split, and distinct `captions`.
        shard_rows: rows of a shard of `images` and of `captions`; the last one of a split may have fewer.
        files: every shard, in order.
        latents: what encoded the images and how; None: they are stored as pixels.
        store: where the shards are; None: beside the manifest.
        towers: where the towers are that encode captions while training, relative to the manifest; None: the captions
            are encoded.
        format: version of the layout.
    """

    key: str
    encoder_key: str
    data_hash: str
    clip: dict[str, Any]
    dtype: str
    shape: tuple[int, ...]
    rows: dict[str, int]
    shard_rows: dict[str, int]
    files: tuple[Shard, ...]
    latents: dict[str, Any] | None = None
    store: str | None = None
    towers: str | None = None
    format: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Writes the manifest atomically."""
        write_whole(folder / MANIFEST_FILE, json.dumps(asdict(self), indent=2))

    @staticmethod
    def load(folder: Path) -> Manifest:
        """Reads the manifest.

        Raises:
            MissingArtifact: there is none.
            InvalidData: it is broken, or of another format version.
        """
        path = folder / MANIFEST_FILE
        try:
            values: Any = json.loads(path.read_text())
        except FileNotFoundError:
            raise MissingArtifact(f"no {MANIFEST_FILE} in {folder}: run `raverse embed` first") from None
        except ValueError as error:
            raise InvalidData(f"{path} is not JSON ({error}): remove it and run `raverse embed` again") from None
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT_VERSION:
            raise InvalidData(
                f"the cache in {folder} has format {found}, wanted {FORMAT_VERSION}: "
                f"remove the folder and run `raverse embed` again"
            )
        try:
            shape, files = tuple(values.pop("shape")), tuple(Shard(**shard) for shard in values.pop("files"))
            found = Manifest(**values, shape=shape, files=files)
            wrong = found._wrong()
        except (KeyError, TypeError, AttributeError) as error:
            wrong = f"lacks a field, or has one of another type ({error})"
        if wrong is not None:
            raise InvalidData(f"{path} {wrong}: remove it and run `raverse embed` again")
        return found

    def _wrong(self) -> str | None:
        """Compares the fields with each other; returns the first contradiction as the end of a sentence, or None."""
        if self.dtype not in DTYPES:
            return f"says dtype {self.dtype!r}, wanted one of {', '.join(DTYPES)}"
        for shard in self.files:
            if Path(shard.path).is_absolute() or ".." in Path(shard.path).parts:
                return f"lists {shard.path!r}, which is outside its folder"
        for prefix, wanted, most in (
            ("captions", self.rows["captions"], self.shard_rows["captions"]),
            *((f"{split}/images", self.rows[split], self.shard_rows["images"]) for split in ("train", "held_out")),
        ):
            shards = self.shards(prefix)
            counts, names = [shard.rows for shard in shards], [path_of(shard.path) for shard in shards]
            if names != sorted(set(names), key=lambda name: (len(name), name)):
                return f"lists shards of {prefix} twice or out of order"
            if sum(counts) != wanted or any(count != most for count in counts[:-1]) or max(counts, default=1) > most:
                return f"lists {len(counts)} shards of {sum(counts)} {prefix}, wanted {wanted} in shards of {most}"
        return None

    def place(self, folder: Path) -> Place:
        """Where the shards are of the manifest in this folder."""
        return Place(str(folder) if self.store is None else self.store)

    def damaged(self, folder: Path) -> list[str]:
        """Paths of shards that are missing or not what the manifest says.

        Raises:
            InvalidData: the store cannot be reached or read.
        """
        with ThreadPoolExecutor(READERS) as pool:
            hashes = pool.map(self.place(folder).sha256, [shard.path for shard in self.files])
            return [shard.path for shard, sha256 in zip(self.files, hashes, strict=True) if sha256 != shard.sha256]

    def shards(self, prefix: str) -> tuple[Shard, ...]:
        """The shards under a sub-folder, in order."""
        return tuple(shard for shard in self.files if shard.path.startswith(f"{prefix}/"))


def discard_damaged(folder: Path) -> None:
    """Removes what an earlier run has finished in this folder and what is no longer what it was.

    A store is left alone: there the names tell.
    """
    try:
        manifest = Manifest.load(folder)
    except MissingArtifact:
        return
    except InvalidData:
        (folder / MANIFEST_FILE).unlink()
        return
    for path in manifest.damaged(folder) if manifest.store is None else []:
        (folder / path).unlink(missing_ok=True)


def discard_unlisted(folder: Path, manifest: Manifest) -> None:
    """Removes shards that an earlier run made here from other input, and that the manifest does not list."""
    listed = {folder / shard.path for shard in manifest.files} if manifest.store is None else set()
    for path in set(folder.rglob(f"*{ENDING}")) - listed:
        path.unlink(missing_ok=True)


def encoder_key(clip: dict[str, Any], dtype: str) -> str:
    """Key of everything but the caption that determines its embedding."""
    fields = ("weights_sha256", "config_sha256", "tokenizer", "context_length")
    return _hash({name: clip[name] for name in fields} | {"layer": _LAYER, "pooling": _POOLING, "dtype": dtype})


def cache_key(encoder: str, data_hash: str, latents: dict[str, Any] | None = None, mode: EmbedMode = "cached") -> str:
    """Key of the whole cache."""
    more = ({} if latents is None else {"latents": latents}) | ({} if mode == "cached" else {"mode": mode})
    return _hash({"encoder": encoder, "data": data_hash} | more)


def caption_id(encoder: str, caption: str) -> bytes:
    """Key of one caption's embedding; the caption is normalised first."""
    return hashlib.sha256(f"{encoder}\n{normalise(caption)}".encode()).digest()[:ID_BYTES]


def normalise(caption: str) -> str:
    """A caption with composed characters (NFC) and single spaces."""
    return " ".join(unicodedata.normalize("NFC", caption).split())


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values | {"version": FORMAT_VERSION}, sort_keys=True).encode()).hexdigest()
