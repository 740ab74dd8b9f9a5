"""A user's data opened for the import and for the check, which so apply the same rules to the same pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from workflows.config.schema import DataConfig
from workflows.data.own.records import Rules, columns_of, rules_of
from workflows.data.sources import SOURCES, Piece, pieces_of, records_of, seen
from workflows.data.sources.location import Location
from workflows.data.sources.record import Columns, Record
from workflows.data.sources.sampled import sampled
from workflows.errors import InvalidData


@final
@dataclass(frozen=True)
class Opened:
    """A user's data, before any record is read.

    Attributes:
        source: name of the format.
        location: of the files.
        columns: of the source.
        pieces: of work, in order.
        rules: for every record.
        seen: about how many records each format would give, the best one first.
    """

    source: str
    location: Location
    columns: Columns
    pieces: list[Piece]
    rules: Rules
    seen: dict[str, int]

    @staticmethod
    def of(config: DataConfig) -> Opened:
        """Finds out the format and cuts the files into pieces.

        Raises:
            InvalidData: nothing is there, or files of another format.
        """
        location, columns = Location(config.path or ""), columns_of(config)
        found = _seen(location, config.source)
        source = next(iter(found)) if config.source == "auto" else config.source
        pieces = pieces_of(source, location, columns)
        intake = SOURCES[source].intake.of(config, pieces, lambda names: sampled(location, pieces, names))
        return Opened(source, location, columns, pieces, rules_of(config, intake), found)

    def read(self, piece: Piece) -> Iterator[Record]:
        """The records of one piece."""
        return records_of(self.source, self.location, piece, self.columns)

    def mixture(self) -> str | None:
        """What the other formats that these files fit would give; None: they fit one alone."""
        others = [f"{name} {count}" for name, count in self.seen.items() if name != self.source]
        if not others:
            return None
        count = self.seen.get(self.source, 0)
        return (
            f"these files are a mixture, read as {self.source} (about {count} records); --source reads them as "
            f"another format: {', '.join(others)}"
        )


def _seen(location: Location, source: str) -> dict[str, int]:
    try:
        return seen(location)
    except InvalidData:
        if source == "auto":
            raise
        return {}
