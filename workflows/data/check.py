"""Looks through a user's captioned images and says what is wrong with them, without Ray and without training."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, final

import numpy as np
import yaml
from numpy.typing import NDArray

from workflows.config.schema import RESERVED_NAMES, DataConfig
from workflows.data.own.joining import join_key
from workflows.data.own.opening import Opened
from workflows.data.own.records import Rules, Usable, use
from workflows.data.picture import plain_view
from workflows.data.png import data_url
from workflows.data.remedies import RULES, default_of, kind_of, printable, remedies
from workflows.data.sources import SOURCES
from workflows.data.sources.record import Record
from workflows.data.tokens import TokenCounts
from workflows.errors import InvalidData

_GOLDEN: Final = 0.6180339887498949
_EXAMPLES: Final = 40
_EXAMPLES_OF_A_KIND: Final = 5
_PAIRS_OF_A_KIND: Final = 3
_THUMBNAILS: Final = 24
_MOST: Final = 10
_TILE: Final = 96


@final
@dataclass
class Check:
    """What has been seen so far; `report` turns it into values for JSON.

    Attributes:
        rules: for every record, as the import would apply them.
        context_length: tokens that a caption may have, with start and end; None: as many as `auto` gives the job.
    """

    rules: Rules
    context_length: int | None
    records: int = 0
    usable: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    broken: list[dict[str, str]] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    images: Counter[bytes] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    keys: set[bytes] = field(default_factory=set)
    thumbnails: list[dict[str, str]] = field(default_factory=list)
    refused_thumbnails: list[dict[str, str]] = field(default_factory=list)
    changed_thumbnails: list[dict[str, str]] = field(default_factory=list)
    lows: NDArray[Any] | None = None
    highs: NDArray[Any] | None = None

    @property
    def looked_at(self) -> int:
        """Records, with those that name a picture which another names too."""
        return self.records + self.joined

    def see(self, record: Record) -> None:
        """Counts one record."""
        try:
            usable = use(record, self.rules)
        except InvalidData as error:
            self.records += 1
            kind = kind_of(str(error))
            self.faults[kind] += 1
            if self.faults[kind] <= _EXAMPLES_OF_A_KIND and len(self.broken) < _EXAMPLES:
                self._show_refused(record, str(error))
            return
        key = join_key(record.image, usable.record.label)
        if self.rules.joins and key in self.keys:
            self.joined += 1
            self.captions.update(usable.captions)
            return
        self.keys.add(key)
        self.records += 1
        self._count(usable)

    def _show_refused(self, record: Record, reason: str) -> None:
        example = {"name": printable(record.name), "reason": printable(reason)}
        self.broken.append(example)
        picture = plain_view(record.image, _TILE)
        self.refused_thumbnails.append(example | ({} if picture is None else {"image": data_url(picture)}))

    def _show_changed(self, usable: Usable) -> None:
        """Keeps a picture as its file has it and as the model would see it."""
        kinds = [kind for change in usable.changes if self.changes[kind := kind_of(change)] <= _PAIRS_OF_A_KIND]
        after = self.rules.intake.thumbnail(usable.row, _TILE)
        if not kinds or after is None or len(self.changed_thumbnails) >= _THUMBNAILS:
            return
        before = plain_view(usable.record.image, _TILE)
        pair = {"name": printable(usable.record.name), "reason": printable("; ".join(usable.changes))}
        pair |= {} if before is None else {"before": data_url(before)}
        self.changed_thumbnails.append(pair | {"after": data_url(after), "caption": usable.captions[0][:120]})

    def _count(self, usable: Usable) -> None:
        self.usable += 1
        found = usable.found
        self.modes[found.mode] += 1
        self.formats[found.format] += 1
        self.widths.append(found.width)
        self.heights.append(found.height)
        self.images[hashlib.sha256(usable.record.image).digest()[:16]] += 1
        self.captions.update(usable.captions)
        self.labels["(none)" if usable.record.label is None else usable.record.label] += 1
        self.changes.update(kind_of(change) for change in usable.changes)
        self._show_changed(usable)
        if self.rules.intake.columns:
            self.lows = usable.row if self.lows is None else np.minimum(self.lows, usable.row)
            self.highs = usable.row if self.highs is None else np.maximum(self.highs, usable.row)
        if len(self.thumbnails) < _THUMBNAILS:
            self._show(usable)

    def _show(self, usable: Usable) -> None:
        """Keeps a picture as the model would see it, as a data URL."""
        if (png := self.rules.intake.thumbnail(usable.row, _TILE)) is not None:
            self.thumbnails.append({"caption": usable.captions[0][:120], "image": data_url(png)})

    def report(self) -> dict[str, Any]:
        """Everything that was counted."""
        counts = self.captions.values()
        tokens = self._tokens()
        length = self.context_length or tokens.fitting
        return {
            "records": self.records,
            "usable": self.usable,
            "joined": self.joined,
            "unusable": dict(self.faults.most_common()),
            "unusable_examples": self.broken,
            "changed": dict(self.changes.most_common()),
            "formats": dict(self.formats.most_common()),
            "modes": dict(self.modes.most_common()),
            "width": _spread(self.widths),
            "height": _spread(self.heights),
            "aspect_ratio": _spread([w / h for w, h in zip(self.widths, self.heights, strict=True)]),
            "smaller_than_wanted": self._too_small(),
            "captions": {
                "total": sum(counts),
                "distinct": len(self.captions),
                "duplicates": sum(counts) - len(self.captions),
                "over_context_length": tokens.over(length),
                "context_length": length,
                "longest": tokens.longest,
                "most_common": dict(self.captions.most_common(_MOST)),
            },
            "duplicate_images": sum(self.images.values()) - len(self.images),
            "labels": dict(self.labels.most_common()) if set(self.labels) - {"(none)"} else {},
        }

    def ranges(self) -> dict[str, dict[str, float]]:
        """The smallest and largest number of each column of numbers."""
        if self.lows is None or self.highs is None:
            return {}
        spans = zip(self.rules.intake.columns, self.lows.tolist(), self.highs.tolist(), strict=True)
        return {name: {"min": float(f"{low:.6g}"), "max": float(f"{high:.6g}")} for name, low, high in spans}

    def _too_small(self) -> int:
        wanted = self.rules.intake.least_side
        return sum(min(size) < wanted for size in zip(self.widths, self.heights, strict=True))

    def _tokens(self) -> TokenCounts:
        counts = TokenCounts()
        for text, times in self.captions.items():
            counts.add([text], times)
        return counts


def check_data(
    config: DataConfig, limit: int | None, context_length: int | None = None
) -> tuple[dict[str, Any], dict[str, list[dict[str, str]]]]:
    """Reads records, spread evenly over the pieces, and reports on them.

    Args:
        config: source, path, columns and rules, as the import would apply them.
        limit: records to look at; None: all.
        context_length: tokens that a caption may have; None: as many as the job would choose.

    Returns:
        The report, and thumbnails: of usable records as they are seen, of refused ones, and of changed ones before and
        after.

    Raises:
        InvalidData: there is nothing, or none of a known format.
    """
    opened = Opened.of(config)
    path, name, pieces, intake = config.path or "", opened.source, opened.pieces, opened.rules.intake
    every = 1 if limit is None else max(1, -(-opened.seen.get(name, 0) // limit))
    check = Check(opened.rules, context_length)
    seen = 0
    for number in _spread_out(len(pieces)):
        if limit is not None and check.looked_at >= limit:
            break
        seen += 1
        for record in _at_most(opened.read(pieces[number] | {"every": every}), limit, check):
            check.see(record)
    head: dict[str, Any] = {"path": path, "format": name, "pieces": len(pieces), "pieces_read": seen}
    if intake.columns:
        head["columns"] = check.ranges()
    report = head | check.report()
    report["complete"] = every == 1 and seen == len(pieces) and (limit is None or check.looked_at < limit)
    report["times"] = every * len(pieces) / max(seen, 1)
    report["mixture"] = opened.mixture()
    report["remedies"] = remedies(report)
    report["shape"] = list(intake.rows(None).shape)
    report["next"] = next_command(config, name, context_length)
    return report, {
        "seen": check.thumbnails,
        "refused": check.refused_thumbnails,
        "changed": check.changed_thumbnails,
    }


def next_command(config: DataConfig, source: str, context_length: int | None = None) -> str:
    """The command that runs the whole job on these data; the preset's settings follow from them where it is None."""
    path, intake = config.path or "", SOURCES[source].intake
    place = path.partition("?")[0] if "://" in path else path
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePosixPath(place.rstrip("/")).stem).strip("-.") or "mine"
    name = f"{name}-data" if name in RESERVED_NAMES else name
    settings = {
        "name": name,
        "register.model_name": f"raverse-{name}",
        "data.source": source,
        "data.path": path,
        **{f"data.{option}": getattr(config, option) for option in intake.options},
        **{f"data.{option}": value for option in RULES if (value := getattr(config, option)) != default_of(option)},
        "data.image_column": config.image_column,
        "data.caption_column": config.caption_column,
        "data.label_column": config.label_column,
        "data.vector_columns": f"[{','.join(config.vector_columns)}]" if config.vector_columns else None,
        "clip.context_length": context_length,
    }
    options = [f"--set {shlex.quote(f'{key}={_yaml(value)}')}" for key, value in settings.items() if value is not None]
    return " ".join([f"raverse run --config {intake.preset}", *options])


def _yaml(value: Any) -> Any:
    """A value as `--set` reads it: a text that would be read as something else stands in quotes."""
    if not isinstance(value, str) or value.startswith("["):
        return value
    try:
        plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value, ensure_ascii=False)


def _at_most(records: Iterator[Record], limit: int | None, check: Check) -> Iterator[Record]:
    for record in records:
        if limit is not None and check.looked_at >= limit:
            return
        yield record


def _spread_out(count: int) -> list[int]:
    """0 .. count-1 in an order whose beginnings are spread evenly: by the fractions of golden multiples."""
    return sorted(range(count), key=lambda number: (number * _GOLDEN) % 1.0)


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    low, median, high = np.quantile(values, [0.0, 0.5, 1.0])
    return {"min": round(float(low), 3), "median": round(float(median), 3), "max": round(float(high), 3)}
