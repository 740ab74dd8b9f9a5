"""From a package that was imported, or fine-tuned from one, back to a folder that diffusers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor

from diffusion_core.bundle import EMA, WEIGHTS, ModelBundle
from workflows.diffusers_io.folder import INDEX
from workflows.diffusers_io.importing import NETWORK_CONFIG
from workflows.errors import InvalidCheckpoint, StorageUnwritable
from workflows.model.latents import PREVIEW_FILE
from workflows.package.files import AUTOENCODER, CLIP, PIPELINE, verify
from workflows.package.lora import ADAPTER, Adapter, for_diffusers, for_kohya, merged
from workflows.storage.atomic import whole_file, whole_folder

_NETWORK_WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
_LORA_WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_OPTIONAL: Final = ("safety_checker", "feature_extractor", "image_encoder")


def export_diffusers(package: Path, target: Path) -> None:
    """Writes a pipeline folder that `from_pretrained` of its class loads; every tensor as it is in the package.

    LoRA's matrices are added to the weights: `export_lora` writes them alone.

    Args:
        package: folder of the package.
        target: to create; an existing folder is refused.

    Raises:
        InvalidCheckpoint: the model has no diffusers pipeline.
        InvalidBundle: the package is broken.
        StorageUnwritable: the folder is there already, or cannot be written.
    """
    verify(package)
    if not (package / PIPELINE / INDEX).is_file():
        raise InvalidCheckpoint(
            "diffusers has no class for this model's network: only imported models and their fine-tunes are exported"
        )
    _in_place(target, lambda partial: _write(package, partial))


def _write(package: Path, partial: Path) -> None:
    index: dict[str, Any] = json.loads((package / PIPELINE / INDEX).read_text())
    network = "transformer" if "transformer" in index else "unet"
    (partial / network).mkdir(parents=True)
    shutil.copyfile(package / PIPELINE / NETWORK_CONFIG, partial / network / "config.json")
    _write_network(package, partial / network / _NETWORK_WEIGHTS)
    for folder in sorted(path for path in (package / PIPELINE).iterdir() if path.is_dir()):
        shutil.copytree(folder, partial / folder.name)
    if (package / AUTOENCODER).is_dir():
        shutil.copytree(package / AUTOENCODER, partial / "vae", ignore=shutil.ignore_patterns(PREVIEW_FILE))
    if (package / CLIP).is_dir():
        for folder in sorted(path for path in (package / CLIP).iterdir() if path.is_dir()):
            shutil.copytree(folder, partial / folder.name)
    for name in _OPTIONAL:
        if name in index and not (partial / name).is_dir():
            # The pictures do not depend on it, and its weights were not imported.
            index[name] = [None, None]
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    (partial / INDEX).write_text(json.dumps(index, indent=2))


def _write_network(package: Path, target: Path) -> None:
    """The published file itself, the average of a full fine-tune, or the base with LoRA's matrices added."""
    bundle = package / "denoiser"
    if (package / ADAPTER).is_dir():
        loaded = ModelBundle.load(bundle)
        network = loaded.network()
        Adapter.load(package / ADAPTER).apply(network, loaded.hash)
        save_file({name: value.contiguous() for name, value in merged(network).items()}, target, {"format": "pt"})
        return
    shutil.copyfile(bundle / EMA if (bundle / EMA).is_file() else bundle / WEIGHTS, target)


def export_lora(package: Path, target: Path, names: Callable[[Adapter], dict[str, Tensor]] = for_diffusers) -> Path:
    """Writes a LoRA version's matrices as `load_lora_weights` reads them.

    Args:
        package: folder of the package.
        target: a `.safetensors` file, or a folder for one; an existing file is refused.
        names: gives the tensors by the names that a program reads.

    Returns:
        The file.

    Raises:
        InvalidCheckpoint: the model has no such matrices.
        InvalidBundle: the package is broken.
        StorageUnwritable: the file is there already, or cannot be written.
    """
    verify(package)
    if not (package / ADAPTER).is_dir():
        raise InvalidCheckpoint("this model is no LoRA version: export it with --format diffusers")
    file = target if target.suffix == ".safetensors" else target / _LORA_WEIGHTS
    if file.exists():
        raise StorageUnwritable(f"{file} is there already: give another name")
    try:
        with whole_file(file) as partial:
            save_file(names(Adapter.load(package / ADAPTER)), partial, {"format": "pt"})
    except OSError as error:
        raise StorageUnwritable(f"cannot write {file} ({error}): give another folder") from None
    return file


def export_kohya(package: Path, target: Path) -> Path:
    """Writes a LoRA version's matrices as kohya's trainer names them, for ComfyUI and A1111; else as `export_lora`."""
    return export_lora(package, target, for_kohya)


FORMATS: Final[dict[str, Callable[[Path, Path], object]]] = {
    "diffusers": export_diffusers,
    "lora": export_lora,
    "kohya": export_kohya,
}
"""The function that writes a package, by the name of the format."""


def _in_place(target: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder under a temporary name until it is whole."""
    if target.exists():
        raise StorageUnwritable(f"{target} is there already: give the name of a new folder")
    try:
        with whole_folder(target) as partial:
            write(partial)
    except OSError as error:
        raise StorageUnwritable(f"cannot write {target} ({error}): give another folder") from None
