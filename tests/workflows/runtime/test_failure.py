"""Known errors are found wherever they are wrapped, and bugs are not taken for them."""

from __future__ import annotations

import errno

import pytest

from workflows.errors import InvalidData, StageFailed
from workflows.runtime.failure import explain


class Wrapping(RuntimeError):
    """Wraps as Ray's task errors do: the text is a traceback."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("Traceback ...\n  File ...")
        self.cause = cause


class WorkersFailed(RuntimeError):
    """Wraps as Ray Train's error does."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("many lines\nof text")
        self.worker_failures = failures


def raised_from(outer: Exception, inner: BaseException) -> Exception:
    try:
        raise outer from inner
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error


KNOWN = InvalidData("row 3 has no caption")


@pytest.mark.parametrize(
    "error",
    [
        KNOWN,
        Wrapping(KNOWN),
        Wrapping(Wrapping(KNOWN)),
        raised_from(RuntimeError("failed"), KNOWN),
        WorkersFailed({0: RuntimeError("lost"), 1: KNOWN}),
        raised_from(RuntimeError("failed"), WorkersFailed({1: Wrapping(KNOWN)})),
    ],
)
def test_a_known_error_is_found(error: Exception) -> None:
    assert explain(error) == "row 3 has no caption"


def test_the_outermost_known_error_wins() -> None:
    assert explain(raised_from(StageFailed("training stopped: row 3"), KNOWN)) == "training stopped: row 3"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_or_closed_disk_is_named(number: int) -> None:
    said = explain(Wrapping(OSError(number, "text", "/data/shard")))
    assert said is not None
    assert "/data/shard" in said
    assert "storage.root=FOLDER" in said


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("bug"), FileNotFoundError(errno.ENOENT, "gone", "x"), Wrapping(KeyError("x"))]
)
def test_bugs_are_not_explained_away(error: Exception) -> None:
    assert explain(error) is None


def test_a_circle_of_causes_ends() -> None:
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert explain(one) is None
