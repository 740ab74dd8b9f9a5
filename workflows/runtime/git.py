"""The commit of the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether the tree differs from it; empty outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def git_commit() -> str:
    """Commit of the code, with `-dirty` where it was changed; `unknown` outside a checkout."""
    state = git_state()
    return f"{state['commit']}{'-dirty' if state['changed'] else ''}" if state else "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
