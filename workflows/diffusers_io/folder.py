"""A diffusers pipeline's folder, looked at before anything of it is loaded, and never run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from safetensors import SafetensorError, safe_open

from workflows.errors import InvalidCheckpoint

INDEX: Final = "model_index.json"
_LFS: Final = b"version https://git-lfs"
_WEIGHTS: Final = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLED: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_CODE: Final = (".py", ".pyc", ".so", ".sh")

_LATENT_TEXT: Final = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),
}
_PIXELS: Final = {"unet": ("UNet2DModel",), "scheduler": ()}
SUPPORTED: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "StableDiffusionPipeline": _LATENT_TEXT,
    "DDPMPipeline": _PIXELS,
    "DDIMPipeline": _PIXELS,
    "DiTPipeline": {
        "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
        "vae": ("AutoencoderKL",),
        "scheduler": (),
    },
}
"""Pipeline classes, their components, and the classes that these may have (none: any)."""
_CHECKER: Final = "safety_checker"
_LEFT_OUT: Final = (_CHECKER, "feature_extractor")
_FILES: Final = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}


@final
@dataclass(frozen=True)
class PipelineFolder:
    """A folder whose files are all there, and of the right kinds.

    Attributes:
        path: where it lies.
        kind: its pipeline class.
        index: its `model_index.json`.
    """

    path: Path
    kind: str
    index: dict[str, Any]

    @property
    def network(self) -> str:
        """Name of the component that denoises."""
        return "transformer" if "transformer" in SUPPORTED[self.kind] else "unet"

    @property
    def latent(self) -> bool:
        """Whether the network denoises latents."""
        return "vae" in SUPPORTED[self.kind]

    @property
    def reads_text(self) -> bool:
        """Whether prompts condition it."""
        return "text_encoder" in SUPPORTED[self.kind]

    @property
    def left_out(self) -> list[str]:
        """Sentences about the components that pictures here do without."""
        entry = self.index.get(_CHECKER)
        present = isinstance(entry, list) and entry[0] is not None
        return [f"the {_CHECKER} is left out: pictures are not checked"] if present else []

    def config(self, component: str) -> dict[str, Any]:
        """A component's configuration.

        Raises:
            InvalidCheckpoint: it cannot be read.
        """
        return read_json(self.path / component / _FILES.get(component, "config.json"))

    def weights(self, component: str) -> Path:
        """A component's safetensors file."""
        return find_weights(self.path / component)

    def check_weights(self) -> None:
        """Reads all weights once.

        Raises:
            InvalidCheckpoint: a number that is not finite.
        """
        for component in SUPPORTED[self.kind]:
            if component not in _FILES:
                check_finite(self.weights(component))


def open_pipeline(path: Path) -> PipelineFolder:
    """Looks a pipeline folder through.

    Raises:
        InvalidCheckpoint: an unsupported class, a component that is missing or of another class, weights that are no
            safetensors file, a half-precision variant, a Git LFS pointer, or code.
    """
    if not (path / INDEX).is_file():
        raise InvalidCheckpoint(f"{path} has no {INDEX}: wanted the folder that `save_pretrained` of a pipeline writes")
    index = read_json(path / INDEX)
    _refuse_code(path, index)
    kind = str(index.get("_class_name"))
    if kind not in SUPPORTED:
        raise InvalidCheckpoint(f"{path} is a {kind}, which is not supported: wanted one of {', '.join(SUPPORTED)}")
    folder = PipelineFolder(path, kind, index)
    for component, classes in SUPPORTED[kind].items():
        _check_component(folder, component, classes)
    for component, entry in index.items():
        known = component in SUPPORTED[kind] or component in _LEFT_OUT or component.startswith("_")
        if not known and isinstance(entry, list) and entry[0] is not None:
            raise InvalidCheckpoint(
                f"{path} has a component {component} ({entry[1]}), which a {kind} here cannot use: save it without"
            )
    return folder


def find_weights(folder: Path) -> Path:
    """The safetensors file of a component.

    Raises:
        InvalidCheckpoint: there is none that can be used; says what there is instead, and what to do.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            _check_file(folder / name)
            return folder / name
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if any(name.endswith(".safetensors.index.json") for name in files):
        raise InvalidCheckpoint(f"{folder} holds weights in several files: save it with max_shard_size='100GB'")
    if variants := [name for name in files if name.endswith(".safetensors")]:
        raise InvalidCheckpoint(
            f"{folder} holds the variant {variants[0]} only: wanted {_WEIGHTS[0]} in full precision; "
            "`DiffusionPipeline.from_pretrained(PATH, variant=...).to(torch.float32).save_pretrained(NEW)` writes it"
        )
    if pickled := [name for name in files if name.endswith(_PICKLED)]:
        raise InvalidCheckpoint(
            f"{folder} holds pickled weights only ({pickled[0]}), which can run code when they are loaded: if you "
            'trust them, convert them with `python -c "from diffusers import DiffusionPipeline as P; P.from_pretrained'
            f"('{folder.parent}', use_safetensors=False).save_pretrained('NEW', safe_serialization=True)\"`"
        )
    raise InvalidCheckpoint(f"{folder} holds no weights: wanted {' or '.join(_WEIGHTS)}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        InvalidCheckpoint: missing, a Git LFS pointer, or no JSON object.
    """
    if not path.is_file():
        raise InvalidCheckpoint(f"{path} is missing: copy the whole pipeline folder")
    _refuse_pointer(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidCheckpoint(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidCheckpoint(f"{path} holds no JSON object: copy it again")
    return values


def _check_component(folder: PipelineFolder, component: str, classes: tuple[str, ...]) -> None:
    entry = folder.index.get(component)
    present = isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
    if not present or not (folder.path / component).is_dir():
        raise InvalidCheckpoint(f"{folder.path} lacks its {component}, which a {folder.kind} needs: copy it whole")
    library, name = entry  # type: ignore[misc]
    if library not in ("diffusers", "transformers"):
        raise InvalidCheckpoint(
            f"the {component} of {folder.path} is {library}.{name}: code of its own, which is never run"
        )
    if classes and name not in classes:
        raise InvalidCheckpoint(f"the {component} of {folder.path} is a {name}: wanted {' or '.join(classes)}")
    folder.config(component)
    if component not in _FILES:
        folder.weights(component)


def _refuse_code(path: Path, index: dict[str, Any]) -> None:
    code = sorted(file.relative_to(path) for file in path.rglob("*") if file.suffix in _CODE)
    if code:
        raise InvalidCheckpoint(f"{path} holds code ({code[0]}), which is never run: import a folder without it")
    if isinstance(index.get("_class_name"), list):
        raise InvalidCheckpoint(f"{path} asks for a pipeline class of its own code, which is never run")


def _check_file(path: Path) -> None:
    _refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{path} is no whole safetensors file ({error}): copy it again") from None


def check_finite(path: Path) -> None:
    """Reads the tensors of a file one by one; memory: the largest of them.

    Raises:
        InvalidCheckpoint: a number that is not finite; names its tensor.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 -- no mapping
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                count = int((~tensor.isfinite()).sum())
                raise InvalidCheckpoint(f"{path}: {count} numbers of {name} are not finite: get another copy")


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise InvalidCheckpoint(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in its repository")
