"""WebDataset tar files, as img2dataset writes them: `KEY.jpg`, `KEY.txt` or `KEY.json`, `KEY.cls`; also `.tar.gz`.

Members of a key need not stand side by side: a tar's directory is read first, then its members by offset. The directory
takes about 400 bytes for each member. A compressed tar is unpacked to a temporary file, bit by bit.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, final

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import (
    CAPTION_NAMES,
    IMAGE_SUFFIXES,
    LABEL_NAMES,
    TEXT_SUFFIXES,
    Columns,
    Record,
    captions_of,
    have_digits,
    is_hidden,
    is_image,
    is_stray,
    keys_found,
    label_of,
    parsed,
    pick,
    read_text,
    thinned,
)
from workflows.errors import InvalidData

_OPENERS: Final[Mapping[str, Any]] = {
    ".tar": None,
    **dict.fromkeys((".tar.gz", ".tgz"), gzip.open),
    **dict.fromkeys((".tar.bz2", ".tbz2"), bz2.open),
    **dict.fromkeys((".tar.xz", ".txz"), lzma.open),
}
_PEEKED: Final = 2000
_BROKEN: Final = (tarfile.TarError, OSError, EOFError, lzma.LZMAError, ValueError)


@final
@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a tar: its name, and where its bytes are, or the name of the member that it is a link to."""

    name: str
    offset: int
    size: int
    link: str | None = None


@final
@dataclass
class _Sample:
    """The members of a key."""

    key: str
    members: list[_Member]


def sees(location: Location, entries: list[Entry]) -> int:
    """About how many pictures the tar files hold, from the first members of the first ones that can be read."""
    tars = [entry for entry in entries if _end_of(entry.path)]
    for entry in tars[:3]:
        try:
            with _opened(location, entry.path) as tar:
                members = [member for member, _ in zip(_members(tar), range(_PEEKED), strict=False)]
        except _BROKEN:
            continue
        images = sum(is_image(member.name) for member in members)
        if not images:
            return 0
        share = 1.0 if len(members) < _PEEKED else entry.size / max(members[-1].offset + members[-1].size, 1)
        # A picture of a compressed tar has about as many bytes as that of an open one.
        return max(1, round(images * max(share, 1.0) * sum(tar.size for tar in tars) / max(entry.size, 1)))
    return int(bool(tars))


def _end_of(path: str) -> str | None:
    return next((end for end in _OPENERS if path.lower().endswith(end)), None)


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:  # noqa: ARG001
    """One piece for each tar file.

    Raises:
        InvalidData: there is none.
    """
    files = [entry.path for entry in location.entries() if _end_of(entry.path)]
    if not files:
        raise InvalidData(
            f"no .tar in {location.url}: set data.path to a folder of them, or choose another data.source"
        )
    return [{"file": file} for file in files]


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:
    """The records of a tar file, in order of each key's first member; a file that is none is one record, refused."""
    name = piece["file"]
    with contextlib.ExitStack() as stack:
        try:
            tar = stack.enter_context(_opened(location, name))
        except _BROKEN as error:
            yield Record(name, fault=f"it is no tar file ({error}): repair or remove it")
            return
        found: dict[str, _Member] = {}
        faults: list[Record] = []
        for member, fault in _directory(tar):
            if member is None:
                faults.append(Record(name, fault=fault))
            elif found.setdefault(member.name, member) is not member:
                faults.append(Record(f"{name}:{member.name}", fault="a second member of this name"))
        reader = _Reader(tar, found)
        for sample in thinned(_samples(found), piece):
            yield _record(reader, f"{name}:{sample.key}", sample, columns)
        yield from thinned(faults, piece)


@contextlib.contextmanager
def _opened(location: Location, name: str) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(location.open(name))
        if (opener := _OPENERS[_end_of(name) or ".tar"]) is not None:
            whole = stack.enter_context(tempfile.TemporaryFile())
            with contextlib.suppress(EOFError), opener(raw) as unpacked:
                shutil.copyfileobj(unpacked, whole, 1 << 20)
            whole.seek(0)
            raw = whole
        yield stack.enter_context(tarfile.open(fileobj=raw, mode="r:"))


def _directory(tar: tarfile.TarFile) -> Iterator[tuple[_Member | None, str]]:
    """Members; None and a reason where the file ends early."""
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, OSError, ValueError) as error:
            yield None, f"the tar file ends early ({error})"
            return
        if member is None:
            if not _has_end(tar):
                yield None, "the tar file ends early"
            return
        vars(tar)["members"] = []  # tarfile would keep a kilobyte for each
        if member.isfile() or member.islnk() or member.issym():
            path = posixpath.normpath(member.name)
            if not is_hidden(path):
                link = None
                if not member.isfile():
                    folder = posixpath.dirname(path) if member.issym() else ""
                    link = posixpath.normpath(posixpath.join(folder, member.linkname))
                yield _Member(path, member.offset_data, member.size, link), ""


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    return (member for member, _ in _directory(tar) if member is not None)


def _has_end(tar: tarfile.TarFile) -> bool:
    """Whether a block of zeros marks the end, as it does unless the file was cut off between two members."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    return bool(file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE))


def _samples(found: Mapping[str, _Member]) -> Iterator[_Sample]:
    """Members by key: what stands before the first dot, or before the last where that gives whole samples."""
    by_key: dict[str, _Sample] = {}
    for member in found.values():
        key = _key(member.name)
        by_key.setdefault(key, _Sample(key, [])).members.append(member)
    pictured = [key for key, sample in by_key.items() if any(is_image(member.name) for member in sample.members)]
    digits = have_digits(pictured)
    for sample in by_key.values():
        parts = list(_parted(sample))
        for part in parts:
            if any(is_image(member.name) for member in part.members) or not is_stray(part.key, digits):
                yield part


def _key(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _parted(sample: _Sample) -> Iterator[_Sample]:
    """A key whose pictures have dots in their names is as many samples, if no picture or text is the key's own."""
    images = [member for member in sample.members if is_image(member.name)]
    plain = any(_is_exact(sample.key, member.name) for member in sample.members)
    if len(images) < 2 or plain:
        yield sample
        return
    stems: dict[str, _Sample] = {}
    for member in sample.members:
        stem = member.name.rpartition(".")[0]
        stems.setdefault(stem, _Sample(stem, [])).members.append(member)
    texts = [member for member in sample.members if member.name.lower().endswith((*TEXT_SUFFIXES, ".json"))]
    with_image = {image.name.rpartition(".")[0] for image in images}
    if any(text.name.rpartition(".")[0] not in with_image for text in texts):
        yield sample
        return
    yield from stems.values()


def _is_exact(key: str, name: str) -> bool:
    return "." not in name[len(key) + 1 :]


@dataclass
class _Reader:
    """Reads members of a tar, and what links lead to."""

    tar: tarfile.TarFile
    found: Mapping[str, _Member]

    def read(self, member: _Member) -> bytes:
        """The bytes of a member.

        Raises:
            OSError: it is cut off, or a link leads nowhere.
        """
        seen = {member.name}
        name = member.name
        while member.link is not None:
            target = self.found.get(member.link)
            if target is None or target.name in seen:
                raise OSError(f"{name} is a link to {member.link}, which is not in the tar file")
            seen.add(target.name)
            member = target
        file: Any = self.tar.fileobj
        file.seek(member.offset)
        data = bytes(file.read(member.size))
        if len(data) < member.size:
            raise OSError(f"{member.name} ends after {len(data)} of {member.size} bytes")
        return data


def _record(reader: _Reader, where: str, sample: _Sample, columns: Columns) -> Record:
    names = ", ".join(_suffix(sample.key, member.name) for member in sample.members)
    try:
        picture, others = _one(sample, IMAGE_SUFFIXES)
        if picture is None:
            return Record(where, fault=f"no image among its members ({names})")
        text, _ = _one(sample, TEXT_SUFFIXES)
        table, _ = _one(sample, (".json",))
        label, _ = _one(sample, (".cls",))
        values, notes = ({}, ()) if table is None else parsed(reader.read(table))
        if not isinstance(values, dict):
            return Record(where, fault=f"its .json holds {type(values).__name__}, wanted an object")
        captions = captions_of(pick(values, columns.caption, CAPTION_NAMES))
        if text is not None and columns.caption is None:
            found, notes = read_text(reader.read(text))
            captions = (found,)
        if not captions:
            return Record(where, fault=f"no caption (members: {names}; keys of .json: {keys_found(values)})")
        name = label_of(pick(values, columns.label, LABEL_NAMES))
        if label is not None and columns.label is None:
            name = label_of(read_text(reader.read(label))[0].strip())
        if others:
            notes = (*notes, f"other pictures of its key left aside ({', '.join(others)})")
        return Record(where, reader.read(picture), captions, name, notes=notes)
    except (ValueError, OSError, tarfile.TarError) as error:
        return Record(where, fault=str(error))


def _one(sample: _Sample, ends: Sequence[str]) -> tuple[_Member | None, list[str]]:
    """The member with one of these ends: KEY and the end alone, else the only one; and the ends of the others.

    Raises:
        ValueError: there are several, and none is the key's own.
    """
    fitting = [member for member in sample.members if PurePosixPath(member.name).suffix.lower() in ends]
    exact = [member for member in fitting if _is_exact(sample.key, member.name)]
    if not exact and len(fitting) > 1:
        names = " and ".join(PurePosixPath(member.name).name for member in fitting[:3])
        raise ValueError(f"{names}: which one is meant? Name it {PurePosixPath(sample.key).name}{ends[0]}")
    order = sorted(exact or fitting, key=lambda member: ends.index(PurePosixPath(member.name).suffix.lower()))
    return (order[0] if order else None), [_suffix(sample.key, member.name) for member in fitting if order[0] != member]


def _suffix(key: str, name: str) -> str:
    return name[len(key) + 1 :]
