"""Artifacts: what one stage hands to the next.

A stage's key is the SHA-256 of its name, its section of the configuration, the version of its
code, and the keys of the artifacts that it reads. The artifact lives in
`<root>/artifacts/<stage>/<first 16 digits>/`; `artifact.json`, written last and atomically, is what makes
the folder an artifact. So a finished stage with unchanged inputs is found again, on any driver.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, final

from workflows.errors import MissingArtifact
from workflows.storage.atomic import write_whole

MARKER: Final = "artifact.json"


@final
@dataclass(frozen=True)
class Artifact:
    """A finished stage: `folder` holds its files, `metrics` its key figures."""

    stage: str
    key: str
    folder: Path
    inputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def commit(self) -> None:
        """Writes the marker: from now on the stage counts as finished."""
        values = asdict(self) | {"folder": None}
        write_whole(self.folder / MARKER, json.dumps(values, indent=2))


def artifact_key(stage: str, section: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """SHA-256 over what determines an artifact, as 64 hexadecimal digits.

    Args:
        stage: name of the stage.
        section: everything that determines its result, JSON-serializable.
        inputs: keys of the artifacts it reads, by stage name.
    """
    text = json.dumps({"stage": stage, "section": section, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def artifact_folder(root: Path, stage: str, key: str) -> Path:
    """Where the artifact with this key lives, finished or not."""
    return root / "artifacts" / stage / key[:16]


def find_artifact(folder: Path) -> Artifact | None:
    """The finished artifact in this folder, or None; a marker that cannot be read counts as none."""
    try:
        values = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return Artifact(**(values | {"folder": folder}))


def require_artifact(folder: Path, stage: str) -> Artifact:
    """The finished artifact in this folder.

    Raises:
        MissingArtifact: the stage has not been run with this configuration.
    """
    artifact = find_artifact(folder)
    if artifact is None:
        raise MissingArtifact(
            f"no finished `{stage}` artifact in {folder}: run `raverse {stage}` with the same --config and --set first"
        )
    return artifact
