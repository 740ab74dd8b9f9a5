"""The rules that a record must meet, and the checked record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, final

from numpy.typing import NDArray

from workflows.config.schema import DataConfig
from workflows.data.intake import Intake
from workflows.data.picture import Found
from workflows.data.sources.record import Columns, Record
from workflows.errors import InvalidData


@final
@dataclass(frozen=True)
class Rules:
    """The rules that a record must meet to be used.

    Attributes:
        intake: how its contents become a row.
        max_caption_chars: longer captions are cut.
        needs_label: whether a record without a label is refused.
        joins: whether records of one picture and label become one, with the captions of all.
    """

    intake: Intake
    max_caption_chars: int
    needs_label: bool = False
    joins: bool = True


def columns_of(config: DataConfig) -> Columns:
    """The columns that a configuration names."""
    named = (config.image_column, config.caption_column, config.label_column, config.vector_columns)
    return Columns(*named, template=config.caption_template)


def rules_of(config: DataConfig, intake: Intake) -> Rules:
    """The rules that a configuration sets for each record."""
    needs_label = config.label_column is not None or config.label_missing == "refuse"
    return Rules(intake, config.max_caption_chars, needs_label=needs_label, joins=intake.joins)


@final
@dataclass(frozen=True)
class Usable:
    """A record that can be used: its raw row, cleaned captions, and what had to be changed."""

    record: Record
    row: NDArray[Any]
    captions: tuple[str, ...]
    found: Found
    changes: tuple[str, ...]


def use(record: Record, rules: Rules) -> Usable:
    """Checks and decodes a record.

    Raises:
        InvalidData: why it cannot be used.
    """
    if record.fault is not None:
        raise InvalidData(record.fault)
    captions, changes = clean_captions(record.captions, rules.max_caption_chars)
    if not captions:
        raise InvalidData("no caption" if not record.captions else "every caption is empty")
    if rules.needs_label and record.label is None:
        raise InvalidData("no label, though data.label_column is set, or data.label_missing=refuse")
    if record.label is not None and as_unicode(record.label) != record.label:
        record = replace(record, label=as_unicode(record.label))
        changes = (*changes, "what is no Unicode text replaced in the label")
    row, found = rules.intake.read(record.image)
    changes = (*record.notes, *changes, *found.notes)
    if found.frames > 1:
        changes = (*changes, f"animated: the first of {found.frames} frames is used")
    return Usable(record, row, captions, found, changes)


def as_unicode(text: str) -> str:
    """Text without lone surrogates, which no file of UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def clean_captions(captions: Iterable[str], max_chars: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions that any tool can read, each once, and what was done to them."""
    cleaned: list[str] = []
    changes: dict[str, None] = {}
    for caption in captions:
        text = as_unicode(caption)
        readable = "".join(" " if ord(char) < 32 or ord(char) == 127 else char for char in text).strip()
        if "\0" in text:
            changes["NUL removed from a caption"] = None
        if text != caption:
            changes["what is no Unicode text replaced in a caption"] = None
        if len(readable) > max_chars:
            changes[f"a caption of {len(readable)} characters cut to {max_chars}"] = None
            readable = readable[:max_chars].strip()
        if readable and readable not in cleaned:
            cleaned.append(readable)
        elif not readable:
            changes["an empty caption left out"] = None
    return tuple(cleaned), tuple(changes)
