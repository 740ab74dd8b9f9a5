"""Artifacts: the key, the marker, and what makes a stage finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflows.errors import MissingArtifact
from workflows.runtime.artifact import Artifact, artifact_folder, artifact_key, find_artifact, require_artifact


def test_key_is_a_pure_function_of_all_its_parts() -> None:
    key = artifact_key("embed", {"a": 1, "b": 2}, {"data": "d", "clip": "c"})
    assert key == artifact_key("embed", {"b": 2, "a": 1}, {"clip": "c", "data": "d"})
    others = {
        artifact_key("clip", {"a": 1, "b": 2}, {"data": "d", "clip": "c"}),
        artifact_key("embed", {"a": 2, "b": 2}, {"data": "d", "clip": "c"}),
        artifact_key("embed", {"a": 1, "b": 2}, {"data": "c", "clip": "d"}),
        artifact_key("embed", {"a": 1, "b": 2}, {"data": "d"}),
    }
    assert len(others | {key}) == 5
    assert len(key) == 64


def test_only_a_committed_folder_is_an_artifact(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path, "data", "k" * 64)
    folder.mkdir(parents=True)
    (folder / "half").write_text("written")
    assert find_artifact(folder) is None
    artifact = Artifact("data", "k" * 64, folder, {"x": "y"}, {"z": 1, "a": [1.5, None]}, 2.5)
    artifact.commit()
    assert find_artifact(folder) == artifact
    assert list(find_artifact(folder).metrics) == ["z", "a"]  # type: ignore[union-attr]
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_an_artifact_moves_with_its_folder(tmp_path: Path) -> None:
    Artifact("data", "k", (tmp_path / "a"), {}, {}, 0.0).folder.mkdir()
    Artifact("data", "k", tmp_path / "a", {}, {}, 0.0).commit()
    (tmp_path / "a").rename(tmp_path / "b")
    found = find_artifact(tmp_path / "b")
    assert found is not None
    assert found.folder == tmp_path / "b"


def test_missing_artifact_says_which_command(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="`raverse embed`"):
        require_artifact(tmp_path / "nothing", "embed")
