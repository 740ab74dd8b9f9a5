"""What the doctor found: one line per check, each with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

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


def findings_text(findings: Sequence[Finding]) -> str:
    """One line per finding, and below it what to do; no columns that wrap, so that a remedy can be copied."""
    width = max(len(one.check) for one in findings)
    lines = []
    for one in findings:
        lines.append(f"{_MARKS[one.level]:8}{one.check:{width}}  {one.found}")
        if one.remedy:
            lines.append(f"{'':8}{'':{width}}  -> {one.remedy}")
    return "\n".join([*lines, _summary(findings)])


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
