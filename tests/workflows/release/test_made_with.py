"""What a version was made with stands in the registry, so that it is promoted without a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflows.config.load import load_config
from workflows.errors import InvalidConfig
from workflows.package.reference import ModelVersion
from workflows.release.promote import CONFIG_TAG, DATA_TAG, version_config, version_data
from workflows.runtime.artifact import Artifact


def made(number: str, **tags: str) -> ModelVersion:
    return ModelVersion("mine", number, "run", tags)


def test_its_own_configuration_is_read_with_the_present_storage_and_overrides(tmp_path: Path) -> None:
    then = load_config("shapes", ["storage.root=/gone", "register.gate.num_prompts=40"])
    now = load_config("digits", [f"storage.root={tmp_path}"])
    version = made("2", **{CONFIG_TAG: then.model_dump_json(by_alias=True)})
    found = version_config(now.storage, [version], ["register.gate.resamples=7"])
    assert found is not None
    assert (found.name, found.register_.gate.num_prompts, found.register_.gate.resamples) == ("shapes", 40, 7)
    assert found.root_folder == tmp_path


def test_the_holder_stands_for_an_imported_version(tiny_artifacts: dict[str, Artifact]) -> None:
    storage = load_config("digits").storage
    holder = made(
        "1",
        **{
            CONFIG_TAG: load_config("digits").model_dump_json(by_alias=True),
            DATA_TAG: str(tiny_artifacts["data"].folder),
        },
    )
    imported = made("2", imported="somewhere")
    found, data = version_config(storage, [imported, holder]), version_data([imported, holder])
    assert found is not None and found.name == "digits"
    assert data is not None and data.info.source == "digits"
    assert version_config(storage, [imported]) is None
    assert version_data([imported]) is None


def test_data_that_are_gone_are_not_opened(tmp_path: Path) -> None:
    assert version_data([made("1", **{DATA_TAG: str(tmp_path / "gone")}), made("2", **{DATA_TAG: ""})]) is None


def test_a_configuration_of_another_raverse_is_named() -> None:
    version = made("1", **{CONFIG_TAG: '{"name": "x", "data": {"source": "digits"}, "old_section": 1}'})
    with pytest.raises(InvalidConfig, match=r"give --config.*old_section"):
        version_config(load_config("digits").storage, [version])
