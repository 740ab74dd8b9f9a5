"""WebDataset tar files, as img2dataset writes them: `KEY.jpg`, `KEY.txt` or `KEY.json`, `KEY.cls`.

Members of a key need not stand side by side: a tar's directory is read first, then its members by offset.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    Record,
    captions_of,
    decoded,
    is_image,
    label_of,
    parsed,
    pick,
)
from workflows.errors import InvalidData

Members = dict[str, tarfile.TarInfo]


def detect(location: Location, entries: list[Entry]) -> bool:  # noqa: ARG001 -- a source's signature
    """Whether there is a tar file."""
    return any(entry.path.endswith(".tar") for entry in entries)


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:  # noqa: ARG001
    """One piece for each tar file.

    Raises:
        InvalidData: there is none.
    """
    files = [entry.path for entry in location.entries() if entry.path.endswith(".tar")]
    if not files:
        raise InvalidData(
            f"no .tar in {location.url}: set data.path to a folder of them, or choose another data.source"
        )
    return [{"file": file} for file in files]


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:
    """The records of a tar file, in order of each key's first member.

    Raises:
        InvalidData: it is no tar file.
    """
    name = piece["file"]
    with _open(location, name) as raw:
        try:
            tar = tarfile.open(fileobj=raw, mode="r:")  # noqa: SIM115 -- closed with the file that it reads
        except tarfile.TarError as error:
            raise InvalidData(f"{name} in {location.url} is no tar file ({error}): repair or remove it") from None
        samples, faults = _directory(tar, name)
        for key, members in samples.items():
            yield _record(tar, f"{name}:{key}", members, columns)
        yield from faults


def _open(location: Location, name: str) -> Any:
    try:
        return location.open(name)
    except OSError as error:
        raise InvalidData(f"cannot read {name} in {location.url} ({error})") from None


def _directory(tar: tarfile.TarFile, name: str) -> tuple[dict[str, Members], list[Record]]:
    samples: dict[str, Members] = {}
    faults: list[Record] = []
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, OSError) as error:
            return samples, [*faults, Record(name, fault=f"the tar file ends early ({error})")]
        if member is None:
            return samples, faults if _has_end(tar) else [*faults, Record(name, fault="the tar file ends early")]
        if member.isfile():
            key, suffix = _split(member.name)
            if samples.setdefault(key, {}).setdefault(suffix, member) is not member:
                faults.append(Record(f"{name}:{member.name}", fault="a second member of this name"))


def _has_end(tar: tarfile.TarFile) -> bool:
    """Whether a block of zeros marks the end, as it does unless the file was cut off between two members."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    return bool(file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE))


def _record(tar: tarfile.TarFile, where: str, members: Members, columns: Columns) -> Record:
    picture = next((members[suffix] for suffix in members if is_image(f"x.{suffix}")), None)
    if picture is None:
        return Record(where, fault=f"no image among its members ({', '.join(members)})")
    try:
        values = parsed(_bytes(tar, members["json"])) if "json" in members else {}
        if not isinstance(values, dict):
            return Record(where, fault=f"its .json holds {type(values).__name__}, wanted an object")
        captions = captions_of(pick(values, columns.caption, CAPTION_NAMES))
        if "txt" in members and columns.caption is None:
            captions = (decoded(_bytes(tar, members["txt"])),)
        label = label_of(pick(values, columns.label, LABEL_NAMES))
        if "cls" in members and columns.label is None:
            label = label_of(decoded(_bytes(tar, members["cls"])).strip())
        return Record(where, _bytes(tar, picture), captions, label)
    except (ValueError, OSError, tarfile.TarError) as error:
        return Record(where, fault=str(error))


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) < member.size:
        raise OSError(f"{member.name} ends after {len(data)} of {member.size} bytes")
    return data


def _split(path: str) -> tuple[str, str]:
    """Key and suffix: at the first dot of the file's name."""
    folder, slash, name = path.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()
