"""What the doctor found: one line per check, each with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from rich.table import Table

from workflows.errors import PreflightFailed

Level = Literal["ok", "note", "problem"]
_MARKS: Final[dict[Level, str]] = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@final
@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was looked at.
        level: `problem` stops a job; `note` is worth knowing.
        found: in a few words.
        remedy: what to do; empty when all is well.
    """

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def note(check: str, found: str, remedy: str) -> Finding:
    """Worth knowing; stops nothing."""
    return Finding(check, "note", found, remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    """Stops a job."""
    return Finding(check, "problem", found, remedy)


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row per finding, with its remedy."""
    table = Table("", "check", "found", "remedy", title=_summary(findings))
    for one in findings:
        table.add_row(_MARKS[one.level], one.check, one.found, one.remedy)
    return table


def refuse_problems(findings: Sequence[Finding]) -> None:
    """Stops where something would stop the job anyway, later.

    Raises:
        PreflightFailed: there is a problem; tells each with its remedy.
    """
    problems = [f"{one.check}: {one.found} ({one.remedy})" for one in findings if one.level == "problem"]
    if problems:
        raise PreflightFailed("; ".join(problems))


def _summary(findings: Sequence[Finding]) -> str:
    problems = sum(one.level == "problem" for one in findings)
    notes = sum(one.level == "note" for one in findings)
    return f"{len(findings)} checks, {problems} problems, {notes} notes"
