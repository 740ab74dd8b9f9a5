"""Structured data: Parquet files with columns of numbers, and a caption or a label for each row.

Without a caption column, a row's caption is its label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from workflows.data.sources import table
from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import CAPTION_NAMES, LABEL_NAMES, Columns, Record, captions_of
from workflows.errors import InvalidData

_OF_PICTURES: Final = (
    "url",
    "image_url",
    "file_name",
    "filename",
    "image_path",
    "image",
    "similarity",
    "nsfw",
    "pwatermark",
)
"""Columns of tables about pictures that lie elsewhere, such as those of img2dataset and of LAION."""


def sees(location: Location, entries: list[Entry]) -> int:
    """About how many rows there are, if they have numbers, a caption or label, and nothing that could be a picture."""
    return table.rows_seen(location, entries, lambda schema, peek: _fits(schema))  # noqa: ARG005


def _fits(schema: Any) -> bool:
    if any(table.is_binary(field.type) or pa.types.is_struct(field.type) for field in schema):
        return False
    if any(name.lower() in _OF_PICTURES for name in schema.names):
        return False
    try:
        resolve(schema, Columns(), "")
    except InvalidData:
        return False
    return True


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:
    """Stretches of row groups; `columns` ends with the names of caption and label.

    Raises:
        InvalidData: no Parquet file, one that cannot be read, or one that lacks a column.
    """
    return table.cut(location, lambda schema, where, peek: resolve(schema, columns, where))  # noqa: ARG005


def resolve(schema: Any, columns: Columns, where: str) -> list[str | None]:
    """Names of the columns of numbers, then of caption and label, of which one may be None.

    Raises:
        InvalidData: one is missing or holds no numbers, or there is neither caption nor label.
    """
    caption = _text_column(schema, columns.caption, CAPTION_NAMES, "caption", where)
    label = _text_column(schema, columns.label, LABEL_NAMES, "label", where)
    if caption is None and label is None:
        raise InvalidData(
            f"neither caption nor label in {where}, which has {', '.join(schema.names)}: set data.caption_column or "
            f"data.label_column"
        )
    values = columns.values or [
        field.name for field in schema if _is_number(field.type) and field.name not in (caption, label)
    ]
    for name in values:
        if name not in schema.names or not _is_number(schema.field(name).type):
            kind = schema.field(name).type if name in schema.names else "not there"
            raise InvalidData(f"column {name!r} of {where} is {kind}, wanted numbers: set data.vector_columns")
    if not values:
        raise InvalidData(f"no column of numbers in {where}, which has {', '.join(schema.names)}")
    return [*values, caption, label]


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:  # noqa: ARG001
    """The records of some row groups."""
    *values, caption, _ = piece["columns"]
    for item in table.rows(location, piece):
        if isinstance(item, Record):
            yield item
            continue
        where, row, label_name = item
        numbers = np.array([np.nan if row[name] is None else row[name] for name in values], np.float64)
        with np.errstate(over="ignore"):
            vector = numbers.astype("<f4")
        bad = [name for name, number in zip(values, vector, strict=True) if not np.isfinite(number)]
        if bad:
            yield Record(where, fault=f"no finite number in {', '.join(bad)}")
            continue
        try:
            texts = captions_of(label_name if caption is None else row[caption])
        except ValueError as error:
            yield Record(where, fault=str(error))
            continue
        notes = () if caption is None else table.notes_of(row[caption])
        yield Record(where, vector.tobytes(), texts, label_name, notes=notes)


def _text_column(schema: Any, wanted: str | None, usual: tuple[str, ...], what: str, where: str) -> str | None:
    if wanted is not None:
        return table.column(schema, wanted, usual, what, where)
    return next((name for name in usual if name in schema.names), None)


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
