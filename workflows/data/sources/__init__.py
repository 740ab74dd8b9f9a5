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

Piece: TypeAlias = dict[str, Any]


@final
@dataclass(frozen=True)
class Source:
    """One format.

    Attributes:
        detect: whether these files look like it.
        pieces: cuts the files into pieces of work; raises `InvalidData` for files that are none of this format.
        read: the records of one piece, in order.
        wanted: what it consists of, for messages.
        intake: what its records hold.
    """

    detect: Callable[[Location, list[Entry]], bool]
    pieces: Callable[[Location, Columns], Iterable[Piece]]
    read: Callable[[Location, Piece, Columns], Iterator[Record]]
    wanted: str
    intake: type[Intake] = PictureIntake


SOURCES: Final[dict[str, Source]] = {
    "folder": Source(folder.detect, folder.pieces, folder.read, "images and metadata.jsonl with file_name and text"),
    "hf_parquet": Source(
        table.detect_hf, table.pieces, table.read, "Parquet with image: {bytes, path} and a caption column"
    ),
    "vectors": Source(
        vectors.detect,
        vectors.pieces,
        vectors.read,
        "Parquet with columns of numbers and a caption or a label",
        VectorIntake,
    ),
    "parquet": Source(table.detect, table.pieces, table.read, "Parquet with image bytes and a caption column"),
    "webdataset": Source(webdataset.detect, webdataset.pieces, webdataset.read, "tar files of KEY.jpg and KEY.txt"),
    "lance": Source(lance.detect, lance.pieces, lance.read, "a Lance data set with image bytes and a caption column"),
    "sidecar": Source(sidecar.detect, sidecar.pieces, sidecar.read, "images with a .txt of the same name beside them"),
}
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
    wanted = "; ".join(f"{name}: {source.wanted}" for name, source in SOURCES.items())
    raise InvalidData(f"no known format in {location.url} ({len(entries)} files): wanted one of {wanted}")
