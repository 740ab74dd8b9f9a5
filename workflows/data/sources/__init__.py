"""Where captioned images come from: one module per format, and the table of them.

A source is two functions: `pieces` cuts its files into pieces of work, in order and without decoding anything,
and `read` yields the records of one piece. Pieces are plain dictionaries, so they travel to any worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

from workflows.data.intake import Intake, PictureIntake, VectorIntake
from workflows.data.sources import folder, lance, sidecar, table, vectors, webdataset
from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import Columns, Record
from workflows.errors import InvalidData
from workflows.options.sources import FORMATS

Piece: TypeAlias = dict[str, Any]


@final
@dataclass(frozen=True)
class Source:
    """One format.

    Attributes:
        detect: whether these files look like it.
        pieces: cuts the files into pieces of work; raises `InvalidData` for files that are none of this format.
        read: the records of one piece, in order.
        intake: what its records hold.
    """

    detect: Callable[[Location, list[Entry]], bool]
    pieces: Callable[[Location, Columns], Iterable[Piece]]
    read: Callable[[Location, Piece, Columns], Iterator[Record]]
    intake: type[Intake] = PictureIntake


_FUNCTIONS: Final[dict[str, Source]] = {
    "folder": Source(folder.detect, folder.pieces, folder.read),
    "hf_parquet": Source(table.detect_hf, table.pieces, table.read),
    "vectors": Source(vectors.detect, vectors.pieces, vectors.read, VectorIntake),
    "parquet": Source(table.detect, table.pieces, table.read),
    "webdataset": Source(webdataset.detect, webdataset.pieces, webdataset.read),
    "lance": Source(lance.detect, lance.pieces, lance.read),
    "sidecar": Source(sidecar.detect, sidecar.pieces, sidecar.read),
}
SOURCES: Final[dict[str, Source]] = {name: _FUNCTIONS[name] for name in FORMATS}
"""By the name that `data.source` takes; the first that fits is detected."""


def detect(location: Location) -> str:
    """The format of what is there.

    Raises:
        InvalidData: nothing is there, or no format fits.
    """
    entries = location.entries()
    for name, source in SOURCES.items():
        if source.detect(location, entries):
            return name
    wanted = "; ".join(f"{name}: {files}" for name, files in FORMATS.items())
    raise InvalidData(f"no known format in {location.url} ({len(entries)} files): wanted one of {wanted}")
