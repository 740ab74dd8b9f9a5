"""A model package on disk: all that is needed to draw pictures from prompts, in one folder.

    denoiser/      a `ModelBundle`
    classifier/    a `ModelBundle` of a noisy-image classifier, where there is one
    clip/          an open_clip folder with `clip.json`, or a pipeline's text tower; none where no text is read
    autoencoder/   of a latent model
    pipeline/      of an imported model: how its scheduler samples, and the small files that it is exported with
    adapter/       of a LoRA version: its matrices; the denoiser is the base's, unchanged
    scorer/        of a fine-tuned pipeline: the CLIP that scores its pictures
    package.json   `PackageCard`: what the model draws, its defaults, and a hash of every part

The folder is what is registered, downloaded and served. It holds no pickle and no code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, final

from diffusion_core.bundle import ModelBundle, link_or_copy
from diffusion_core.errors import InvalidBundle
from workflows.data.rows import RowType, rows_of
from workflows.data.scale import VectorScale
from workflows.errors import InvalidConfig
from workflows.options.guidance import DEFAULT_SCALES, SETTINGS
from workflows.package.kinds import register
from workflows.package.lora import ADAPTER
from workflows.storage.atomic import whole_folder
from workflows.storage.hashing import file_sha256

FORMAT_VERSION: Final = 1
"""The version of `package.json` that is read and written; others are refused."""
CARD_FILE: Final = "package.json"
BUNDLES: Final = ("denoiser", "classifier")
CLIP: Final = "clip"
AUTOENCODER: Final = "autoencoder"
PIPELINE: Final = "pipeline"
SCORER: Final = "scorer"
_SHOWN: Final = 3
"""Columns that a message names."""
_FOLDERS: Final = (CLIP, AUTOENCODER, PIPELINE, SCORER, ADAPTER)
# The marker of the stage that made a part, and what trained it, say nothing about the part.
_NO_PART: Final = shutil.ignore_patterns("artifact.json", "training", ".*")


@final
@dataclass(frozen=True)
class Defaults:
    """What a request gets that does not say.

    Attributes:
        num_steps: sampler steps.
        guidance: settings of guidance by name, see `workflows.options.guidance.SETTINGS`.
    """

    num_steps: int = 50
    guidance: Mapping[str, Any] = field(default_factory=lambda: DEFAULT_SCALES)

    def describe(self) -> dict[str, Any]:
        """The values as `package.json` holds them: all numbers side by side."""
        return {"num_steps": self.num_steps, **self.guidance}

    @staticmethod
    def of(values: Mapping[str, Any]) -> Defaults:
        """The inverse of `describe`; settings that the file does not hold keep the table's defaults.

        Raises:
            InvalidBundle: a setting that this program does not know.
        """
        settings = {name: value for name, value in values.items() if name != "num_steps"}
        if unknown := sorted(settings.keys() - SETTINGS.keys()):
            raise InvalidBundle(f"the package has a default of {unknown[0]!r}, which no guidance reads: update raverse")
        return Defaults(values["num_steps"], settings)


_LISTS: Final = ("shape", "class_names", "candidate_captions", "withheld")


@final
@dataclass(frozen=True)
class PackageCard:
    """What a package says about itself; written as `package.json`.

    Attributes:
        source: the data set.
        shape: (c, h, w) of a picture, or (d,) of a vector.
        class_names: names of the labels.
        candidate_captions: texts that a prompt competes with under text guidance.
        data_hash: of the data that it was trained on.
        defaults: of requests.
        scale: what the numbers of vectors mean; None: it draws pictures.
        withheld: kinds of guidance that the service does not offer, since an evaluation found that they do not help.
        parts: hash of each bundle, and of every other file by its path.
        format_version: of the file.
    """

    source: str
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    candidate_captions: tuple[str, ...]
    data_hash: str
    defaults: Defaults
    scale: VectorScale | None = None
    withheld: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def rows(self) -> RowType:
        """The type of what it draws."""
        return rows_of(self.shape, self.scale)

    @property
    def hash(self) -> str:
        """SHA-256 over the card, and so over every part."""
        return hashlib.sha256(json.dumps(self._values(), sort_keys=True).encode()).hexdigest()

    def _values(self) -> dict[str, Any]:
        """Without what is withheld where nothing is, so that cards of earlier versions keep their hash."""
        values = asdict(self) | {"defaults": self.defaults.describe()}
        return values if self.withheld else {name: value for name, value in values.items() if name != "withheld"}

    def save(self, folder: Path) -> None:
        """Writes `package.json`."""
        (folder / CARD_FILE).write_text(json.dumps(self._values() | {"hash": self.hash}, indent=2, sort_keys=True))

    @staticmethod
    def load(folder: Path) -> PackageCard:
        """Reads `package.json`.

        Raises:
            InvalidBundle: there is none, of another format version, or changed since it was written.
        """
        path = folder / CARD_FILE
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidBundle(f"{folder} is no model package: its {CARD_FILE} cannot be read ({error})") from None
        if values.get("format_version") != FORMAT_VERSION:
            raise InvalidBundle(
                f"{path} has format version {values.get('format_version')!r}, this program reads {FORMAT_VERSION}"
            )
        claimed = values.pop("hash", None)
        values.setdefault("withheld", ())
        if set(values) != {part.name for part in fields(PackageCard)}:
            raise InvalidBundle(f"{path} lacks fields or has unknown ones: register the model again")
        lists = {name: tuple(values[name]) for name in _LISTS}
        parts = {"defaults": Defaults.of(values["defaults"]), "scale": VectorScale.of(values["scale"])}
        card = PackageCard(**(values | lists | parts))
        if card.hash != claimed:
            raise InvalidBundle(f"{path} was changed after it was written: its hash is not {claimed}")
        return card


def assemble(
    folder: Path,
    card: PackageCard,
    *,
    denoiser: Path,
    classifier: Path | None,
    clip: Path | None,
    more: Mapping[str, Path] | None = None,
    link: bool = False,
) -> PackageCard:
    """Puts the parts into a package, under a temporary name until it is whole.

    Args:
        folder: to create, or replace.
        card: without its `parts`.
        denoiser: a bundle's folder.
        classifier: a bundle's folder; None: the package has none.
        clip: an open_clip folder with `clip.json`, or a pipeline's text tower; None: the package has none.
        more: folders of the other parts.
        link: files are linked where the file system can, not copied.

    Returns:
        The card as it was written.

    Raises:
        InvalidBundle: a part that is broken, or parts that do not belong together.
    """
    parts = {"denoiser": denoiser, "classifier": classifier, CLIP: clip, **(more or {})}
    with whole_folder(folder) as partial:
        for name, source in parts.items():
            if source is not None:
                copy = link_or_copy if link else shutil.copy2
                shutil.copytree(source, partial / name, ignore=_NO_PART, copy_function=copy)
        whole = replace(card, parts=_hashes(partial, open_bundles(partial)))
        whole.save(partial)
    return whole


def verify(folder: Path) -> tuple[PackageCard, dict[str, ModelBundle]]:
    """Reads the card and the bundles, and compares every part with its hash.

    Raises:
        InvalidBundle: a part that is missing or not what the card says, or parts that do not belong together.
    """
    card, bundles = PackageCard.load(folder), open_bundles(folder)
    found = _hashes(folder, bundles)
    for name in {**card.parts, **found}:
        if card.parts.get(name) != found.get(name):
            raise InvalidBundle(f"{folder / name} is not the part that {CARD_FILE} describes: its hash differs")
    return card, bundles


def check_draws_pictures(card: PackageCard, name: str) -> None:
    """Refuses a model of anything else where pictures are wanted.

    Raises:
        InvalidConfig: says how to draw with it.
    """
    if not card.rows.drawable:
        raise InvalidConfig(
            f"{name} draws {card.rows.name} of {', '.join([*card.rows.outputs][:_SHOWN])}, ... and no pictures: draw "
            f"with mlflow.pyfunc.load_model(...).predict"
        )


def open_bundles(folder: Path) -> dict[str, ModelBundle]:
    """The denoiser and, where there is one, the classifier, with one noise schedule, data shape and CLIP.

    Raises:
        InvalidBundle: a broken bundle, or two that differ in one of these.
    """
    register()
    names = [name for name in BUNDLES if name == "denoiser" or (folder / name).exists()]
    bundles = {name: ModelBundle.load(folder / name) for name in names}
    if len(bundles) < len(BUNDLES):
        return bundles
    denoiser, classifier = (bundles[name] for name in BUNDLES)
    pairs = {
        "noise schedule": (denoiser.schedule.to_config(), classifier.schedule.to_config()),
        "data shape": (denoiser.shape, classifier.shape),
        "CLIP": (denoiser.clip, classifier.clip),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise InvalidBundle(f"denoiser and classifier in {folder} have another {what} each: train both with one")
    return bundles


def scorer_folder(folder: Path) -> Path | None:
    """Where a package keeps a CLIP that looks at pictures; None: it has none, as an imported pipeline."""
    if (folder / SCORER).is_dir():
        return folder / SCORER
    return None if (folder / PIPELINE).is_dir() else folder / CLIP


def _hashes(folder: Path, bundles: Mapping[str, ModelBundle]) -> dict[str, str]:
    files = sorted(path for name in _FOLDERS for path in (folder / name).rglob("*") if path.is_file())
    return {name: bundle.hash for name, bundle in bundles.items()} | {
        path.relative_to(folder).as_posix(): file_sha256(path) for path in files
    }
