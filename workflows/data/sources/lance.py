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


def sees(location: Location, entries: list[Entry]) -> int:
    """How many rows a Lance data set has; 1 where that cannot be found out."""
    if not any(entry.path.startswith("_versions/") and entry.path.endswith(".manifest") for entry in entries):
        return 0
    try:
        return max(1, int(_open(location, None).count_rows()))
    except InvalidData:
        return 1


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:
    """Stretches of the fragments.

    Raises:
        InvalidData: pylance is not installed, there is no Lance data set, or it lacks a column.
    """
    data = _open(location, None)
    found, first = list(table.resolve(data.schema, columns, location.url, lambda name: _peek(data, name))), 0
    for fragment in data.get_fragments():
        rows = fragment.count_rows()
        for start in range(0, rows, _ROWS_PER_PIECE):
            place = {"version": data.version, "fragment": fragment.fragment_id, "offset": start}
            yield place | {"first": first + start, "columns": found}
        first += rows


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:  # noqa: ARG001
    """The records of a stretch of a fragment.

    Raises:
        InvalidData: the data set cannot be opened.
    """
    image, caption, label = piece["columns"]
    data, number, every = _open(location, piece["version"]), piece["first"], int(piece.get("every", 1))
    names = table.class_names(data.schema, label)
    wanted = [column for column in piece["columns"] if column is not None]
    fragment, place = data.get_fragment(piece["fragment"]), {"offset": piece["offset"], "limit": _ROWS_PER_PIECE}
    try:
        for batch in fragment.to_batches(columns=wanted, batch_size=_ROWS_AT_ONCE, **place):
            columns_of = table.values_of(batch)
            for row in range(batch.num_rows):
                if (number - piece["first"]) % every == 0:
                    found = table.label_by_name(columns_of[label][row] if label else None, names)
                    cells = columns_of[image][row], columns_of[caption][row]
                    yield table.record_of(location, f"row {number}", *cells, found)
                number += 1
    except (OSError, ValueError, RuntimeError) as error:
        end = piece["first"] + min(_ROWS_PER_PIECE, fragment.count_rows() - piece["offset"])
        fault = f"the data set is damaged here ({error}): repair it"
        yield from (Record(f"row {row}", fault=fault) for row in range(number, end, every))


def _peek(data: Any, name: str) -> list[Any]:
    """The first filled cells of a column."""
    for batch in data.to_batches(columns=[name], batch_size=_ROWS_AT_ONCE):
        return [value for value in table.values_of(batch)[name] if value is not None]
    return []


def _open(location: Location, version: int | None) -> Any:
    try:
        import lance
    except ImportError:
        raise InvalidData("Lance data need pylance: pip install 'raverse[lance]'") from None
    try:
        return lance.dataset(location.url, version=version)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidData(f"no Lance data set at {location.url} ({error}): check data.path and data.source") from None
