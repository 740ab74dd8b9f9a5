"""The batch that is read ahead is the one that would be read in its turn."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from workflows.config.schema import TrainConfig
from workflows.errors import InvalidData
from workflows.train.batches import Share
from workflows.train.loop.read_ahead import ReadAhead

CONFIG = TrainConfig(steps=3, batch_size=4, accumulate=2)


@dataclass
class Counting:
    """Batches that are their own place, and who read them."""

    num_tokens: int = 1
    read_by: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    fails_at: tuple[int, int] | None = None

    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def read(self, samples_seen: int, part: int, share: Share) -> tuple[int, int, Share]:
        self.read_by.setdefault((samples_seen, part), []).append(threading.current_thread().name)
        if (samples_seen, part) == self.fails_at:
            raise InvalidData("row 7 was changed")
        return samples_seen, part, share


def test_each_batch_is_read_once_and_all_but_the_first_ahead() -> None:
    batches, share = Counting(), Share(1, 2)
    ahead = ReadAhead(batches, CONFIG, share)  # type: ignore[arg-type]
    for seen in (0, 4, 8):
        for part in (0, 1):
            assert ahead.read(seen, part) == (seen, part, share)
    assert set(batches.read_by) == {(seen, part) for seen in (0, 4, 8) for part in (0, 1)}, "none after the last step"
    assert all(len(names) == 1 for names in batches.read_by.values())
    ahead_of = {place: names[0].startswith("read-ahead") for place, names in batches.read_by.items()}
    assert ahead_of == {place: place != (0, 0) for place in ahead_of}


def test_closing_ends_what_runs_beside() -> None:
    batches = Counting()
    ahead = ReadAhead(batches, CONFIG, Share())  # type: ignore[arg-type]
    ahead.read(0, 0)
    ahead.close()
    assert batches.closed


def test_a_jump_reads_what_is_asked_for() -> None:
    batches, share = Counting(), Share()
    ahead = ReadAhead(batches, CONFIG, share)  # type: ignore[arg-type]
    assert ahead.read(0, 0) == (0, 0, share)
    assert ahead.read(8, 1) == (8, 1, share)


def test_an_error_comes_where_its_batch_is_asked_for() -> None:
    batches = Counting(fails_at=(4, 0))
    ahead = ReadAhead(batches, CONFIG, Share())  # type: ignore[arg-type]
    ahead.read(0, 0)
    ahead.read(0, 1)
    with pytest.raises(InvalidData, match="row 7 was changed"):
        ahead.read(4, 0)
