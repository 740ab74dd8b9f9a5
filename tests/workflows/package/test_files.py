"""A package is whole, unchanged and of one piece, or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_core.errors import InvalidBundle
from workflows.package.files import PackageCard, assemble, verify


@pytest.fixture
def copy(tiny_package: Path, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    return Path(shutil.copytree(tiny_package, tmp_path / "package"))


def parts(package: Path) -> dict[str, Path]:
    return {name: package / name for name in ("denoiser", "classifier", "clip")}


def test_an_unchanged_copy_is_accepted(copy: Path, tiny_package: Path) -> None:
    card, bundles = verify(copy)
    assert card.hash == PackageCard.load(tiny_package).hash
    assert set(bundles) == {"denoiser", "classifier"}
    assert {"denoiser", "classifier", "clip/clip.json", "clip/open_clip_model.safetensors"} <= set(card.parts)


def test_assembling_again_gives_the_same_hash_and_replaces(copy: Path, tmp_path: Path) -> None:
    card = PackageCard.load(copy)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "old").write_text("")
    again = assemble(tmp_path / "again", card, **parts(copy))
    assert again == PackageCard.load(tmp_path / "again") == card
    assert not (tmp_path / "again" / "old").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "package"], "nothing temporary is left"


def test_a_stage_marker_and_what_trained_are_no_parts(copy: Path, tmp_path: Path) -> None:
    (copy / "clip" / "artifact.json").write_text("{}")
    (copy / "clip" / "training").mkdir()
    assemble(tmp_path / "again", PackageCard.load(copy), **parts(copy))
    assert not (tmp_path / "again" / "clip" / "artifact.json").exists()
    assert not (tmp_path / "again" / "clip" / "training").exists()


@pytest.mark.parametrize(
    "file",
    [
        "denoiser/weights.safetensors",
        "denoiser/ema.safetensors",
        "denoiser/bundle.json",
        "classifier/ema.safetensors",
        "clip/open_clip_model.safetensors",
        "clip/open_clip_config.json",
        "package.json",
    ],
)
def test_one_changed_byte_is_found(copy: Path, file: str) -> None:
    verify(copy)
    content = bytearray((copy / file).read_bytes())
    place = content.rindex(b"1") if file.endswith(".json") else len(content) - 1
    content[place] ^= 3
    (copy / file).write_bytes(bytes(content))
    with pytest.raises(InvalidBundle):
        verify(copy)


def test_a_missing_file_is_found(copy: Path) -> None:
    (copy / "clip" / "open_clip_config.json").unlink()
    with pytest.raises(InvalidBundle, match=r"clip/open_clip_config\.json"):
        verify(copy)


def test_an_added_file_is_found(copy: Path) -> None:
    (copy / "clip" / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidBundle, match="tokenizer"):
        verify(copy)


def test_a_swapped_denoiser_is_found(copy: Path, tmp_path: Path, write_package) -> None:
    other = write_package(tmp_path / "other", seed=1)
    verify(other)
    shutil.rmtree(copy / "denoiser")
    shutil.copytree(other / "denoiser", copy / "denoiser")
    with pytest.raises(InvalidBundle, match="denoiser"):
        verify(copy)


def test_a_classifier_of_another_schedule_is_refused(copy: Path, tmp_path: Path, write_classifier) -> None:
    write_classifier(tmp_path / "classifier", num_levels=50)
    wanted = parts(copy) | {"classifier": tmp_path / "classifier"}
    with pytest.raises(InvalidBundle, match="noise schedule"):
        assemble(tmp_path / "again", PackageCard.load(copy), **wanted)
    assert not (tmp_path / "again").exists()


def test_another_format_version_is_refused(copy: Path) -> None:
    values = json.loads((copy / "package.json").read_text())
    (copy / "package.json").write_text(json.dumps(values | {"format_version": 2}))
    with pytest.raises(InvalidBundle, match="format version 2, this program reads 1"):
        verify(copy)


@pytest.mark.parametrize("change", [{"unknown": 1}, {"shape": None}])
def test_a_card_with_other_fields_is_refused(copy: Path, change: dict) -> None:
    values = json.loads((copy / "package.json").read_text()) | change
    (copy / "package.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(InvalidBundle, match="lacks fields or has unknown ones"):
        verify(copy)


def test_a_folder_that_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="no model package"):
        verify(tmp_path)


def test_what_the_service_withholds_is_part_of_the_hash_and_cards_without_it_keep_theirs(copy: Path) -> None:
    card = PackageCard.load(copy)
    assert "withheld" not in json.loads((copy / "package.json").read_text())
    replace(card, withheld=("clip",)).save(copy)
    again, _ = verify(copy)
    assert again.withheld == ("clip",)
    assert again.hash != card.hash
