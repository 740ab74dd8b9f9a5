"""Moves an alias of the registry: through the gate, by force, or back.

`move_alias` is the only place that moves one. It compares and sets under a lock, so that of two promotions
at once the second finds another holder than it was compared with, and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from workflows.config.load import saved_config
from workflows.config.schema import RunConfig, StorageConfig
from workflows.data.dataset import Dataset
from workflows.errors import ModelNotFound, PromotionConflict, PromotionRefused
from workflows.package.files import verify
from workflows.package.reference import ModelVersion, find_version, resolve
from workflows.release.comparison import compare_packages
from workflows.release.gate import Comparison
from workflows.runtime.progress import Progress
from workflows.tracking.store import open_client, reaching, store_folder, tracking_uri

CHALLENGER: Final = "challenger"
"""Alias of the newest version that the gate refused."""
_OVER: Final = "promoted_over"
CONFIG_TAG: Final = "config"
"""Tag of a version with the configuration of its job, as JSON."""
DATA_TAG: Final = "data_folder"
"""Tag of a version with the folder of the data that it was trained on."""
_FIGURES: Final = ("accuracy", "retrieval", "energy_distance", "clip_fd", "clip_score", "share_of_copies")


@final
@dataclass(frozen=True)
class Promotion:
    """What became of a promotion.

    Attributes:
        moved: whether the version holds the alias now.
        reason: `first`, `holder already`, `same package`, `gate`, `gate off`, `forced`, `rollback`; for a refusal
            a sentence.
        version: the version.
        previous: the holder before; None if there was none.
        comparison: the table, where the gate was asked.
    """

    moved: bool
    reason: str
    version: ModelVersion
    previous: str | None
    comparison: Comparison | None = None


def promote(
    config: RunConfig,
    version: ModelVersion,
    open_data: Callable[[], Dataset],
    progress: Progress,
    *,
    force: bool = False,
) -> Promotion:
    """Gives a version the configured alias, if it passes the gate against the present holder.

    Args:
        config: names the alias and the rules.
        version: the challenger.
        open_data: gives the data, with prompts and real samples; called where the gate compares.
        progress: told about finished pictures.
        force: moves the alias without a comparison; a tag of the version says so.

    Returns:
        What was done; a refusal too, for the caller to tell.

    Raises:
        PromotionConflict: the alias was moved while the versions were compared.
        InvalidBundle: a package that was changed.
        ModelNotFound: a version without a package.
    """
    uri, alias = tracking_uri(config), config.register_.alias
    holder = holder_of(uri, version.name, alias)
    previous = None if holder is None else holder.version
    if previous == version.version:
        return Promotion(True, "holder already", version, previous)
    folder = resolve(uri, f"{version.name}/{version.version}").folder
    verify(folder)
    reason, comparison = _reason(config, version, holder, force=force), None
    if reason == "gate" and holder is not None:
        champion = resolve(uri, f"{holder.name}/{holder.version}").folder
        try:
            comparison = compare_packages(config, champion, folder, open_data(), progress)
        except PromotionRefused as error:
            _refuse(uri, version, {"passed": False, "why": str(error)})
            return Promotion(False, str(error), version, previous)
        if not comparison.passed:
            _refuse(uri, version, comparison.values())
            return Promotion(False, comparison.advice(config.register_.gate), version, previous, comparison)
    move_alias(config, version, alias, expected=previous, tags=_tags(reason, previous, comparison))
    return Promotion(True, reason, version, previous, comparison)


def rollback(config: RunConfig, name: str) -> Promotion:
    """Gives the alias back to the version that held it before.

    Raises:
        ModelNotFound: nobody holds the alias, nobody held it before, or the earlier version is gone.
        InvalidBundle: the earlier package was changed.
        PromotionConflict: the alias was moved meanwhile.
    """
    uri, alias = tracking_uri(config), config.register_.alias
    holder = find_version(uri, f"{name}@{alias}")
    earlier = holder.tags.get(_OVER)
    if not earlier:
        raise ModelNotFound(f"{name} version {holder.version} is the first that held `{alias}`: nothing to go back to")
    target = resolve(uri, f"{name}/{earlier}")
    verify(target.folder)
    move_alias(config, target.version, alias, expected=holder.version, tags={"rolled_back_from": holder.version})
    return Promotion(True, "rollback", target.version, holder.version)


def holder_of(uri: str, name: str, alias: str) -> ModelVersion | None:
    """The version that holds an alias, if any."""
    try:
        return find_version(uri, f"{name}@{alias}")
    except ModelNotFound:
        return None


def move_alias(
    config: RunConfig, version: ModelVersion, alias: str, *, expected: str | None, tags: Mapping[str, str]
) -> None:
    """Moves an alias from the version that is expected to hold it.

    The lock is a file beside the store, or under `storage.root` for a server: there, drivers with other roots
    are kept apart by the comparison alone.

    Args:
        config: names the store.
        version: to get the alias.
        alias: to move.
        expected: its present holder; None: nobody.
        tags: of the version, written before the alias moves.

    Raises:
        PromotionConflict: another version holds it.
    """
    uri = tracking_uri(config)
    client = open_client(uri)
    with _locked(store_folder(config)), reaching(uri):
        holder = holder_of(uri, version.name, alias)
        found = None if holder is None else holder.version
        if found != expected:
            raise PromotionConflict(
                f"`{alias}` of {version.name} was moved to version {found} meanwhile, it was {expected}: run this again"
            )
        for name, value in tags.items():
            client.set_model_version_tag(version.name, version.version, name, value)
        client.set_registered_model_alias(version.name, alias, version.version)
        challenger = holder_of(uri, version.name, CHALLENGER)
        if challenger is not None and challenger.version == version.version:
            client.delete_registered_model_alias(version.name, CHALLENGER)


def _reason(config: RunConfig, version: ModelVersion, holder: ModelVersion | None, *, force: bool) -> str:
    if holder is None:
        return "first"
    if force:
        return "forced"
    if holder.tags.get("package_hash") == version.tags.get("package_hash"):
        return "same package"
    return "gate" if config.register_.gate.enabled else "gate off"


def _tags(reason: str, previous: str | None, comparison: Comparison | None) -> dict[str, str]:
    tags = {"promoted_because": reason, "promoted_at": _now(), _OVER: previous or ""}
    if reason == "forced":
        tags["forced"] = "true"
    return tags | ({} if comparison is None else {"gate": json.dumps(comparison.values())})


def _refuse(uri: str, version: ModelVersion, why: Mapping[str, Any]) -> None:
    client = open_client(uri)
    with reaching(uri):
        for name, value in {"refused_at": _now(), "gate": json.dumps(why)}.items():
            client.set_model_version_tag(version.name, version.version, name, value)
        client.set_registered_model_alias(version.name, CHALLENGER, version.version)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".promote.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def list_versions(config: RunConfig, name: str) -> list[dict[str, str]]:
    """Every version of a model, newest first: number, aliases, why it was promoted or refused, figures, hash."""
    uri = tracking_uri(config)
    client = open_client(uri)
    with reaching(uri):
        aliases: dict[str, list[str]] = {}
        versions = list(client.search_model_versions(f"name = '{name}'"))
        for alias, number in (client.get_registered_model(name).aliases if versions else {}).items():
            aliases.setdefault(str(number), []).append(alias)
        rows = [_row(found, aliases, client.get_run(found.run_id).data.metrics) for found in versions]
    if rows:
        rows = [_without(row, {name for name in _FIGURES if not any(row[name] for row in rows)}) for row in rows]
    if not rows:
        raise ModelNotFound(f"no model {name!r} in {uri}: register one with `raverse run` or `raverse register`")
    return sorted(rows, key=lambda row: int(row["version"]), reverse=True)


def version_config(
    storage: StorageConfig, versions: Sequence[ModelVersion], overrides: list[str] | None = None
) -> RunConfig | None:
    """The configuration with which the first of these versions that a job made was made.

    Args:
        storage: where the present command looks.
        versions: the version, then others that may stand for it: an imported one has no configuration.
        overrides: `KEY=VALUE`.

    Raises:
        InvalidConfig: it is of another raverse.
    """
    texts = [version.tags[CONFIG_TAG] for version in versions if CONFIG_TAG in version.tags]
    return saved_config(texts[0], storage, overrides) if texts else None


def version_data(versions: Sequence[ModelVersion]) -> Dataset | None:
    """The data of the first of these versions whose folder is still there."""
    for version in versions:
        folder = Path(version.tags.get(DATA_TAG, ""))
        if DATA_TAG in version.tags and (folder / "data.json").is_file():
            return Dataset.open(folder)
    return None


def _without(row: dict[str, str], names: set[str]) -> dict[str, str]:
    """A row without the figures that no version has."""
    return {name: value for name, value in row.items() if name not in names}


def _row(found: Any, aliases: Mapping[str, list[str]], metrics: Mapping[str, float]) -> dict[str, str]:
    tags, number = dict(found.tags), str(found.version)
    promoted = " ".join(part for part in (tags.get("promoted_because", ""), tags.get("promoted_at", "")) if part)
    figures = {name: metrics.get(f"evaluate.{name}", metrics.get(name)) for name in _FIGURES}
    return {
        "version": number,
        "aliases": ", ".join(sorted(aliases.get(number, []))),
        "promoted": promoted or (f"refused {tags['refused_at']}" if "refused_at" in tags else ""),
        **{name: "" if value is None else f"{value:.4g}" for name, value in figures.items()},
        "package": tags.get("package_hash", "half-written")[:12],
        "commit": tags.get("git_commit", "")[:12],
    }
