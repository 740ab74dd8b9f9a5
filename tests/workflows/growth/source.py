"""A format of a user's own data: images, and `pairs.csv` with their file names and captions."""

from __future__ import annotations

import json
from pathlib import Path

from tests.workflows.growth.edits import below, instead, new_file

NAME = "source of data"
MOST_FILES = 3
EDITS = (
    new_file(
        "workflows/data/sources/pairs_csv.py",
        '''"""Images and `pairs.csv`: a line `file_name,caption` for each picture, and a heading."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Any, Final

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import Columns, Record, label_of, pick, read_text, thinned
from workflows.errors import InvalidData

_FILE: Final = "pairs.csv"
_LINES_AT_ONCE: Final = 512


def sees(location: Location, entries: list[Entry]) -> int:
    """How many lines `pairs.csv` has, if it is there."""
    return len(_lines(location)) if any(entry.path == _FILE for entry in entries) else 0


def _lines(location: Location) -> list[dict[str, str]]:
    text, _ = read_text(location.read(_FILE))
    return list(csv.DictReader(text.splitlines()))


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:  # noqa: ARG001
    """Stretches of lines.

    Raises:
        InvalidData: there is no `pairs.csv`, or it cannot be read.
    """
    try:
        lines = _lines(location)
    except OSError as error:
        raise InvalidData(f"cannot read {_FILE} in {location.url} ({error}): choose another data.source") from None
    for start in range(0, len(lines), _LINES_AT_ONCE):
        yield {"lines": lines[start : start + _LINES_AT_ONCE]}


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:
    """The records of a stretch of lines."""
    for line in thinned(piece["lines"], piece):
        path = str(pick(line, columns.image, ("file_name",)))
        caption = pick(line, columns.caption, ("caption",))
        try:
            label = label_of(pick(line, columns.label, ("label",)))
            yield Record(path, location.read(path), (caption,) if caption else (), label)
        except OSError as error:
            yield Record(path, fault=str(error))
''',
    ),
    instead(
        "workflows/data/sources/__init__.py",
        "from workflows.data.sources import classes, folder, lance, sidecar,",
        "from workflows.data.sources import classes, folder, lance, pairs_csv, sidecar,",
    ),
    below(
        "workflows/data/sources/__init__.py",
        """    "sidecar": Source(sidecar.sees, sidecar.pieces, sidecar.read),
""",
        """    "csv": Source(pairs_csv.sees, pairs_csv.pieces, pairs_csv.read),
""",
    ),
    below(
        "workflows/options/sources.py",
        """    "sidecar": "images with a .txt, .caption or .json of the same name beside them",
""",
        """    "csv": "images and pairs.csv with file_name and caption",
""",
    ),
)


def check(_package: Path, folder: Path) -> None:
    """The format is known by name and by its files, and its records are read, checked and decoded."""
    import pytest
    from PIL import Image

    from tests.workflows.growth.interfaces import raverse
    from workflows.config.load import load_config
    from workflows.data.sources import SOURCES, detect
    from workflows.data.sources.location import Location
    from workflows.data.sources.record import Columns
    from workflows.errors import InvalidConfig, InvalidData

    images = folder / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(images / f"{number}.png")
    location = Location(str(images))
    with pytest.raises(InvalidData, match="csv: images and pairs"):
        detect(location)
    (images / "pairs.csv").write_text("file_name,caption\n0.png,black\n1.png,dark red\n2.png,red\n3.png,none\n")
    assert detect(location) == "csv"
    (piece,) = SOURCES["csv"].pieces(location, Columns())
    records = list(SOURCES["csv"].read(location, piece, Columns()))
    assert [(record.name, record.captions) for record in records[:3]] == [
        ("0.png", ("black",)),
        ("1.png", ("dark red",)),
        ("2.png", ("red",)),
    ]
    assert records[3].fault is not None

    assert load_config("digits", ["data.source=csv", f"data.path={images}"]).data.source == "csv"
    with pytest.raises(InvalidConfig, match="'csv'"):
        load_config("digits", ["data.source=tsv", f"data.path={images}"])
    raverse("data", "check", str(images), "--image-size", "8", "--max-bad-fraction", "0.5", "--out", str(folder))
    report = json.loads((folder / "report.json").read_text())
    assert (report["format"], report["records"], report["usable"]) == ("csv", 4, 3)
