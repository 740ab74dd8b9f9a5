"""Versions of a real registry under one alias: compared, refused, forced, rolled back, tampered with, raced for."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_core.errors import InvalidBundle
from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.errors import ModelNotFound, PromotionConflict
from workflows.package.files import PackageCard
from workflows.package.reference import ModelVersion, find_version, resolve
from workflows.release.logging import log_package
from workflows.release.promote import CHALLENGER, holder_of, list_versions, move_alias, promote, rollback
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.tracking.run import tracked_run
from workflows.tracking.store import open_client, tracking_uri

MODEL = "gated"
SMALL = [
    "register.gate.num_prompts=20",
    # Of models that were never trained the nearer pictures need not come with the smaller loss.
    "register.gate.max_loss_rise=1000",
    "evaluate.num_steps=2",
    f"register.model_name={MODEL}",
]


@pytest.fixture
def config(tmp_path: Path, empty_store: Path) -> RunConfig:
    shutil.copy(empty_store, tmp_path)
    return load_config("digits", [f"storage.root={tmp_path}", *SMALL])


@pytest.fixture(scope="module")
def dataset(tiny_artifacts: dict[str, Artifact]) -> Dataset:
    return Dataset.open(tiny_artifacts["data"].folder)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, write_package: Callable[..., Path]) -> list[Path]:
    return [write_package(tmp_path_factory.mktemp(f"seed{seed}"), seed=seed) for seed in range(2)]


def add(config: RunConfig, package: Path, number: int) -> ModelVersion:
    """A version of the registry, as `register_model` makes it, without an alias."""
    card = PackageCard.load(package)
    with tracked_run(config, config.root_folder / f"run-{number}.json") as run:
        if number == 1:
            run.client.create_registered_model(MODEL)
        uri, model_id = log_package(run, package, card)
        tags = {"package_hash": card.hash}
        made = run.client.create_model_version(MODEL, uri, run.run_id, tags, model_id=model_id)
    assert str(made.version) == str(number)
    return find_version(tracking_uri(config), f"{MODEL}/{number}")


def champion(config: RunConfig) -> str:
    return find_version(tracking_uri(config), f"{MODEL}@champion").version


def test_worse_is_refused_better_passes_force_and_rollback_move(
    ray_session: None, config: RunConfig, dataset: Dataset, packages: list[Path]
) -> None:
    """Both models are untrained; of their pictures those of the second seed lie nearer to digits."""
    uri, quiet = tracking_uri(config), Progress.silent()
    worse, better = packages
    first = promote(config, add(config, better, 1), lambda: dataset, quiet)
    assert (first.moved, first.reason, first.previous) == (True, "first", None)
    with pytest.raises(ModelNotFound, match="nothing to go back to"):
        rollback(config, MODEL)

    second = add(config, worse, 2)
    refused = promote(config, second, lambda: dataset, quiet)
    assert not refused.moved
    assert refused.comparison is not None
    assert champion(config) == "1"
    held = find_version(uri, f"{MODEL}@{CHALLENGER}")
    assert held.version == "2"
    assert json.loads(held.tags["gate"]) == refused.comparison.values()

    forced = promote(config, second, lambda: dataset, quiet, force=True)
    assert (forced.moved, forced.reason, forced.previous) == (True, "forced", "1")
    tags = find_version(uri, f"{MODEL}@champion").tags
    assert (tags["forced"], tags["promoted_over"]) == ("true", "1")
    assert holder_of(uri, MODEL, CHALLENGER) is None

    third = promote(config, add(config, better, 3), lambda: dataset, quiet)
    assert (third.moved, third.reason, third.previous) == (True, "gate", "2")
    assert third.comparison is not None
    losses = [-line.gain for line in refused.comparison.lines]
    assert [line.gain for line in third.comparison.lines] == pytest.approx(losses), "the same pictures twice"
    rows = [(row["version"], row["aliases"]) for row in list_versions(config, MODEL)]
    assert rows == [("3", "champion"), ("2", ""), ("1", "")]

    assert [rollback(config, MODEL).version.version for _ in range(2)] == ["2", "1"]
    assert champion(config) == "1"


def test_the_same_package_needs_no_pictures(config: RunConfig, dataset: Dataset, packages: list[Path]) -> None:
    promote(config, add(config, packages[0], 1), lambda: dataset, Progress.silent())
    again = promote(config, add(config, packages[0], 2), lambda: dataset, Progress.silent())
    assert (again.moved, again.reason) == (True, "same package")
    assert promote(config, again.version, lambda: dataset, Progress.silent()).reason == "holder already"


def test_the_gate_can_be_off(config: RunConfig, dataset: Dataset, packages: list[Path], tmp_path: Path) -> None:
    off = load_config("digits", [f"storage.root={tmp_path}", *SMALL, "register.gate.enabled=false"])
    for number, package in enumerate(packages, start=1):
        done = promote(off, add(off, package, number), lambda: dataset, Progress.silent())
    assert (done.moved, done.reason) == (True, "gate off")


def test_tampered_weights_are_not_promoted_nor_rolled_back_to(
    config: RunConfig, dataset: Dataset, packages: list[Path]
) -> None:
    uri, quiet = tracking_uri(config), Progress.silent()
    promote(config, add(config, packages[0], 1), lambda: dataset, quiet)
    second = add(config, packages[1], 2)
    tamper(resolve(uri, f"{MODEL}/2").folder / "denoiser" / "ema.safetensors")
    with pytest.raises(InvalidBundle, match="ema"):
        promote(config, second, lambda: dataset, quiet, force=True)
    assert champion(config) == "1"
    promote(config, add(config, packages[1], 3), lambda: dataset, quiet, force=True)
    tamper(resolve(uri, f"{MODEL}/1").folder / "denoiser" / "ema.safetensors")
    with pytest.raises(InvalidBundle, match="ema"):
        rollback(config, MODEL)
    assert champion(config) == "3"


def tamper(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")


def test_another_package_under_a_version_is_noticed(config: RunConfig, packages: list[Path]) -> None:
    add(config, packages[0], 1)
    folder = resolve(tracking_uri(config), f"{MODEL}/1").folder
    shutil.rmtree(folder)
    shutil.copytree(packages[1], folder)
    with pytest.raises(InvalidBundle, match=f"{MODEL} version 1 was registered with"):
        resolve(tracking_uri(config), f"{MODEL}/1")


def test_another_format_version_is_refused(config: RunConfig, packages: list[Path]) -> None:
    add(config, packages[0], 1)
    card = resolve(tracking_uri(config), f"{MODEL}/1").folder / "package.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format_version": 99}))
    with pytest.raises(InvalidBundle, match="format version 99"):
        resolve(tracking_uri(config), f"{MODEL}/1")


def test_a_half_written_version_is_named(config: RunConfig, packages: list[Path], dataset: Dataset) -> None:
    version = add(config, packages[0], 1)
    open_client(tracking_uri(config)).delete_model_version_tag(MODEL, "1", "package_hash")
    with pytest.raises(ModelNotFound, match="half-written"):
        promote(config, version, lambda: dataset, Progress.silent())
    assert holder_of(tracking_uri(config), MODEL, "champion") is None


def test_a_missing_alias_is_named(config: RunConfig, packages: list[Path]) -> None:
    add(config, packages[0], 1)
    with pytest.raises(ModelNotFound, match="gated@champion"):
        rollback(config, MODEL)
    with pytest.raises(ModelNotFound, match="no model 'other'"):
        list_versions(config, "other")


def test_of_promotions_at_once_one_wins_and_the_others_are_told(config: RunConfig, packages: list[Path]) -> None:
    first, *later = [add(config, packages[0], number) for number in range(1, 5)]
    move_alias(config, first, "champion", expected=None, tags={})
    won: list[str] = []
    lost: list[PromotionConflict] = []
    together = threading.Barrier(len(later))

    def race(version: ModelVersion) -> None:
        together.wait()
        try:
            move_alias(config, version, "champion", expected="1", tags={})
            won.append(version.version)
        except PromotionConflict as error:
            lost.append(error)

    threads = [threading.Thread(target=race, args=(version,)) for version in later]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 2
    assert champion(config) == won[0]
    assert f"was moved to version {won[0]} meanwhile" in str(lost[0])
