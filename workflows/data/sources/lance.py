"""A Lance data set with image bytes, or Hugging Face's `{bytes, path}`, and a caption: the extra `raverse[lance]`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from workflows.data.sources import table
from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import Columns, Record
from workflows.errors import InvalidData

_ROWS_AT_ONCE: Final = 64
_ROWS_PER_PIECE: Final = 512


def detect(location: Location, entries: list[Entry]) -> bool:  # noqa: ARG001 -- a source's signature
    """Whether there are the files of a Lance data set."""
    return any(entry.path.startswith("_versions/") and entry.path.endswith(".manifest") for entry in entries)


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:
    """Stretches of the fragments.

    Raises:
        InvalidData: pylance is not installed, there is no Lance data set, or it lacks a column.
    """
    data = _open(location, None)
    found, first = list(table.resolve(data.schema, columns, location.url)), 0
    for fragment in data.get_fragments():
        rows = fragment.count_rows()
        for start in range(0, rows, _ROWS_PER_PIECE):
            place = {"version": data.version, "fragment": fragment.fragment_id, "offset": start}
            yield place | {"first": first + start, "columns": found}
        first += rows


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:  # noqa: ARG001
    """The records of a stretch of a fragment.

    Raises:
        InvalidData: the data set is damaged.
    """
    image, caption, label = piece["columns"]
    data, number = _open(location, piece["version"]), piece["first"]
    names = table.class_names(data.schema, label)
    wanted = [column for column in piece["columns"] if column is not None]
    fragment, place = data.get_fragment(piece["fragment"]), {"offset": piece["offset"], "limit": _ROWS_PER_PIECE}
    try:
        for batch in fragment.to_batches(columns=wanted, batch_size=_ROWS_AT_ONCE, **place):
            for row in table.values_of(batch):
                found = table.label_by_name(row.get(label), names)
                yield table.record_of(location, f"row {number}", row[image], row[caption], found)
                number += 1
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidData(f"{location.url} is damaged at row {number} ({error}): repair it") from None


def _open(location: Location, version: int | None) -> Any:
    try:
        import lance
    except ImportError:
        raise InvalidData("Lance data need pylance: pip install 'raverse[lance]'") from None
    try:
        return lance.dataset(location.url, version=version)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidData(f"no Lance data set at {location.url} ({error}): check data.path and data.source") from None
