"""Where captioned images come from: one module per format, and the table of them.

A source is three functions: `sees` says about how many records it would give, `pieces` cuts its files into pieces of
work, in order and without decoding anything, and `read` yields the records of one piece. Pieces are plain dictionaries,
so they travel to any worker. A piece may hold records that are refused from the start (`refused`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

from workflows.data.intake import Intake, PictureIntake, VectorIntake
from workflows.data.sources import classes, folder, lance, sidecar, table, vectors, webdataset
from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import Columns, Record, is_image
from workflows.errors import InvalidData
from workflows.options.sources import FORMATS

Piece: TypeAlias = dict[str, Any]

_BESIDE_LOOSE: Final = 2
"""So many times the records of loose files must packed files hold, or they are taken for a backup."""


@final
@dataclass(frozen=True)
class Source:
    """One format.

    Attributes:
        sees: about how many records these files give; 0: they are none of this format.
        pieces: cuts the files into pieces of work; raises `InvalidData` for files that are none of this format.
        read: the records of one piece, in order.
        intake: what its records hold.
        rank: formats of a lower rank are taken first, whatever others see.
        packed: whether its pictures lie in larger files.
    """

    sees: Callable[[Location, list[Entry]], int]
    pieces: Callable[[Location, Columns], Iterable[Piece]]
    read: Callable[[Location, Piece, Columns], Iterator[Record]]
    intake: type[Intake] = PictureIntake
    rank: int = 0
    packed: bool = False


_FUNCTIONS: Final[dict[str, Source]] = {
    "folder": Source(folder.sees, folder.pieces, folder.read),
    "sidecar": Source(sidecar.sees, sidecar.pieces, sidecar.read),
    "webdataset": Source(webdataset.sees, webdataset.pieces, webdataset.read, packed=True),
    "hf_parquet": Source(table.sees_hf, table.pieces, table.read, packed=True),
    "parquet": Source(table.sees, table.pieces, table.read, packed=True),
    "lance": Source(lance.sees, lance.pieces, lance.read, packed=True),
    "classes": Source(classes.sees, classes.pieces, classes.read, rank=1),
    "vectors": Source(vectors.sees, vectors.pieces, vectors.read, VectorIntake, rank=2),
}
SOURCES: Final[dict[str, Source]] = {name: _FUNCTIONS[name] for name in FORMATS}
"""By the name that `data.source` takes; of formats that see as many records, the first is detected."""


def pieces_of(name: str, location: Location, columns: Columns) -> list[Piece]:
    """All pieces of work, in order; files whose names no message can hold are refused records of the last one."""
    found = list(SOURCES[name].pieces(location, columns))
    if unreadable := location.unreadable():
        reason = "the name is no UTF-8: rename it"
        found.append({"refused": [[path, reason] for path in unreadable]})
    return found


def records_of(name: str, location: Location, piece: Piece, columns: Columns) -> Iterator[Record]:
    """The records of one piece, in order."""
    if "refused" in piece:
        return (Record(path, fault=reason) for path, reason in piece["refused"])
    return SOURCES[name].read(location, piece, columns)


def seen(location: Location) -> dict[str, int]:
    """About how many records each format would give, the best one first.

    Raises:
        InvalidData: nothing is there, or no format fits.
    """
    entries = location.entries()
    counts = {name: count for name, source in SOURCES.items() if (count := source.sees(location, entries))}
    if not counts:
        raise InvalidData(_nothing(location, entries))
    return dict(sorted(counts.items(), key=lambda item: _order(item[0], counts)))


def _order(name: str, counts: Mapping[str, int]) -> tuple[int, float]:
    source = SOURCES[name]
    loose = any(not SOURCES[other].packed and SOURCES[other].rank == 0 for other in counts)
    return source.rank, -counts[name] / (_BESIDE_LOOSE if source.packed and loose else 1)


def detect(location: Location) -> str:
    """The format of what is there.

    Raises:
        InvalidData: nothing is there, or no format fits.
    """
    return next(iter(seen(location)))


def _nothing(location: Location, entries: list[Entry]) -> str:
    wanted = "; ".join(f"{name}: {files}" for name, files in FORMATS.items())
    found = f"no known format in {location.url} ({len(entries)} files)"
    if images := sum(is_image(entry.path) for entry in entries):
        return f"{found}: {images} pictures without captions: put a .txt of the same name beside each; wanted {wanted}"
    for entry in table.parquet_files(entries):
        try:
            table.pieces_fault(location, entry.path)
        except InvalidData as error:
            return f"{found}: {error}; wanted {wanted}"
    return f"{found}: wanted one of {wanted}"
