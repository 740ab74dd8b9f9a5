"""From a diffusers pipeline folder to a package like any other.

    folder -> checked -> network, schedule, conventions read -> parts linked -> package

Large files are linked where the file system can. The weights of the package are the published tensors themselves.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion_core.bundle import ModelBundle, link_or_copy
from diffusion_core.errors import InvalidBundle
from workflows.diffusers_io.folder import INDEX, PipelineFolder, open_pipeline
from workflows.errors import InvalidCheckpoint, InvalidConfig
from workflows.options.guidance import SCALE_NAMES
from workflows.package.files import AUTOENCODER, CLIP, PIPELINE, Defaults, PackageCard, assemble
from workflows.package.kinds import register
from workflows.package.network_config import DiffusersConfig, packed

if TYPE_CHECKING:
    from workflows.diffusers_io.scheduler import ReadScheduler

PROMPTS: Final = ("a photograph", "a painting of a landscape", "a portrait")
"""What an imported text model is warmed and shown with."""
UNKNOWN_DATA: Final = "imported"
"""Data hash of a checkpoint: what it was trained on is not known here."""
_GUIDANCE: Final = 7.5
_LABEL_GUIDANCE: Final = 4.0
_SMALL_FILES: Final = ("scheduler", "feature_extractor")
NETWORK_CONFIG: Final = "network.json"
_OLD_NAMES: Final = ("query", "key", "value", "proj_attn")
_NEEDS_MORE: Final = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "time_cond_proj_dim")


@final
@dataclass(frozen=True)
class Imported:
    """A package that was made of a pipeline.

    Attributes:
        card: of the package.
        differences: what the pipeline does that pictures here do not follow, as sentences.
    """

    card: PackageCard
    differences: list[str]


def import_pipeline(path: Path, folder: Path) -> Imported:
    """Makes a package of a pipeline; nothing is left behind when it fails.

    Args:
        path: of the pipeline: a folder as `save_pretrained` writes it.
        folder: of the package, to create or replace.

    Raises:
        InvalidCheckpoint: the pipeline cannot be used; says what was found, what was wanted and what to do.
        InvalidConfig: diffusers is not installed.
    """
    try:
        from workflows.diffusers_io.scheduler import read_scheduler
    except ImportError:
        raise InvalidConfig("diffusers checkpoints need an extra: pip install 'raverse[diffusers]'") from None
    register()
    source = open_pipeline(path)
    config = source.config(source.network)
    latent, learned = source.latent, _learned_variance(source, config)
    read = read_scheduler(_scheduler(source), latent=latent, learned_variance=learned)
    source.check_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.parts.") as temporary:
        parts = Path(temporary)
        identity, null = _text(source, parts / CLIP)
        names = _class_names(source, config)
        network = _network_config(source, config, null, len(names), learned, read.sampling.num_times)
        _bundle(source, network, read, identity, parts)
        shape = _autoencoder(source, network.shape, parts / AUTOENCODER)
        read.sampling.save(_small_files(source, parts / PIPELINE))
        card = PackageCard(
            source=source.kind,
            shape=shape,
            class_names=names,
            candidate_captions=PROMPTS if source.reads_text else (),
            data_hash=UNKNOWN_DATA,
            defaults=_defaults(source),
        )
        card = assemble(
            folder,
            card,
            denoiser=parts / "denoiser",
            classifier=None,
            clip=parts / CLIP if source.reads_text else None,
            more={PIPELINE: parts / PIPELINE} | ({AUTOENCODER: parts / AUTOENCODER} if latent else {}),
            link=True,
        )
    return Imported(card, [*read.differences, *source.left_out])


def _bundle(
    source: PipelineFolder, network: DiffusersConfig, read: ReadScheduler, clip: dict[str, Any] | None, parts: Path
) -> None:
    try:
        ModelBundle.save(
            parts / "denoiser",
            network,
            _weights(source, network.architecture, parts),
            schedule=read.schedule,
            parameterization=read.parameterization,
            clip=clip,
        )
    except InvalidBundle as error:
        raise InvalidCheckpoint(
            f"the {source.network} of {source.path} does not fit its config.json: {error}"
        ) from None


def _scheduler(source: PipelineFolder) -> dict[str, Any]:
    """Its configuration as the pipeline's class takes it: that of Stable Diffusion overwrites two values."""
    own = source.config("scheduler")
    return own | {"steps_offset": 1, "clip_sample": False} if source.reads_text else own


def _network_config(
    source: PipelineFolder, config: Mapping[str, Any], null: Tensor | None, num_classes: int, learned: bool, times: int
) -> DiffusersConfig:
    _check_network(source, config)
    side = config.get("sample_size")
    sides = side if isinstance(side, list) else [side, side]
    if not all(isinstance(value, int) for value in sides):
        raise InvalidCheckpoint(f"sample_size {side!r} of the {source.network}: wanted the side of a row as a number")
    width = config.get("cross_attention_dim") if source.reads_text else None
    if null is not None and null.shape[1] != width:
        raise InvalidCheckpoint(f"the text encoder gives {null.shape[1]} numbers per token, the unet reads {width}")
    architectures = {"StableDiffusionPipeline": "UNet2DConditionModel", "DiTPipeline": "DiTTransformer2DModel"}
    return DiffusersConfig(
        architecture=architectures.get(source.kind, "UNet2DModel"),
        shape=(int(config["in_channels"]), *(int(value) for value in sides)),  # type: ignore[arg-type]
        model=json.dumps({key: value for key, value in config.items() if not key.startswith("_")}, sort_keys=True),
        num_times=times,
        token_dim=width,
        num_classes=num_classes or None,
        null_tokens="" if null is None else packed(null),
        learned_variance=learned,
    )


def _weights(source: PipelineFolder, architecture: str, scratch: Path) -> Path:
    """The network's file; one with the tensor names of early diffusers is written anew."""
    path = source.weights(source.network)
    with safe_open(path, framework="pt") as file:
        if not any(f".{name}." in key for key in file.keys() for name in _OLD_NAMES):  # noqa: SIM118
            return path
    import diffusers

    model = getattr(diffusers, architecture).from_pretrained(str(path.parent), use_safetensors=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, scratch / path.name)
    return scratch / path.name


def _check_network(source: PipelineFolder, config: Mapping[str, Any]) -> None:
    """Refuses networks that read more than a row, its time and its condition."""
    found = [name for name in _NEEDS_MORE if config.get(name) is not None]
    if source.network == "unet" and config.get("num_class_embeds") is not None:
        found.append("num_class_embeds")
    if found:
        raise InvalidCheckpoint(f"the unet of {source.path} has {found[0]} = {config[found[0]]!r}: wanted none")
    channels, out = config.get("in_channels"), config.get("out_channels") or config.get("in_channels")
    variance = 2 if source.network == "transformer" else 1
    if not isinstance(channels, int) or out not in (channels, variance * channels):
        raise InvalidCheckpoint(
            f"the {source.network} of {source.path} takes {channels} channels and gives {out}: wanted as many (an "
            "inpainting or depth checkpoint reads more than a row)"
        )


def _learned_variance(source: PipelineFolder, config: Mapping[str, Any]) -> bool:
    return config.get("out_channels") == 2 * int(config.get("in_channels") or 0) and source.network == "transformer"


def _text(source: PipelineFolder, folder: Path) -> tuple[dict[str, Any] | None, Tensor | None]:
    """The text tower's identity, and what it says of the empty prompt."""
    if not source.reads_text:
        return None, None
    from workflows.towers.clip import load_clip
    from workflows.towers.pipeline_text import TEXT_ENCODER, TOKENIZER, WEIGHTS, describe_text

    for name in (TEXT_ENCODER, TOKENIZER):
        (folder / name).mkdir(parents=True)
    _copy_small(source.path / TOKENIZER, folder / TOKENIZER)
    shutil.copyfile(source.path / TEXT_ENCODER / "config.json", folder / TEXT_ENCODER / "config.json")
    link_or_copy(source.weights(TEXT_ENCODER), folder / TEXT_ENCODER / WEIGHTS)
    identity = asdict(describe_text(folder, f"pipeline:{source.path.name}"))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in identity.items()}
    return plain, load_clip(folder).text.encode([""]).tokens[0]


def _autoencoder(source: PipelineFolder, rows: tuple[int, ...], folder: Path) -> tuple[int, ...]:
    """Links the autoencoder, and fits its previews; returns the shape of a picture."""
    if not source.latent:
        return rows
    from workflows.model.latents import fit_preview, save_preview
    from workflows.towers.autoencoder import Autoencoder

    folder.mkdir(parents=True)
    config = source.config("vae")
    shutil.copyfile(source.path / "vae" / "config.json", folder / "config.json")
    weights = source.weights("vae")
    link_or_copy(weights, folder / weights.name)
    if config.get("latent_channels") != rows[0]:
        raise InvalidCheckpoint(
            f"the vae of {source.path} makes latents of {config.get('latent_channels')} channels, the "
            f"{source.network} denoises {rows[0]}"
        )
    try:
        autoencoder = Autoencoder.load(folder)
    except InvalidConfig as error:
        raise InvalidCheckpoint(f"the vae of {source.path}: {error}") from None
    save_preview(folder, fit_preview(autoencoder, rows[0]))
    height, width = (side * autoencoder.factor for side in rows[1:])
    return (int(config.get("out_channels", 3)), height, width)


def _small_files(source: PipelineFolder, folder: Path) -> Path:
    """What an export needs beside the weights."""
    folder.mkdir(parents=True)
    shutil.copyfile(source.path / INDEX, folder / INDEX)
    shutil.copyfile(source.path / source.network / "config.json", folder / NETWORK_CONFIG)
    for name in _SMALL_FILES:
        if (source.path / name).is_dir():
            (folder / name).mkdir()
            _copy_small(source.path / name, folder / name)
    return folder


def _copy_small(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)


def _class_names(source: PipelineFolder, config: Mapping[str, Any]) -> tuple[str, ...]:
    if source.network != "transformer":
        return ()
    count, labels = int(config.get("num_embeds_ada_norm") or 0), source.index.get("id2label") or {}
    named = [str(labels.get(str(number), number)).partition(",")[0] for number in range(count)]
    repeated = {name for name in named if named.count(name) > 1}
    return tuple(f"{name} ({number})" if name in repeated else name for number, name in enumerate(named))


def _defaults(source: PipelineFolder) -> Defaults:
    scale = _GUIDANCE if source.reads_text else _LABEL_GUIDANCE if source.network == "transformer" else 1.0
    return Defaults(50, dict.fromkeys(SCALE_NAMES, 0.0) | {"guidance_scale": scale})
