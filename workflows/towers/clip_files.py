"""An open_clip model as a self-contained folder: weights, configuration, tokenizer, identity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import open_clip
from safetensors.torch import save

from workflows.errors import InvalidClip
from workflows.storage.hashing import file_sha256
from workflows.towers.clip import PictureFormat, TextTower, open_model
from workflows.towers.identity import ClipIdentity

WEIGHTS_FILE: Final = "open_clip_model.safetensors"
CONFIG_FILE: Final = "open_clip_config.json"
_WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".pt", ".pth"})


def save_clip(
    folder: Path, model: Any, tokenizer: Any, *, name: str, source: str, model_cfg: Mapping[str, Any]
) -> None:
    """Writes a model that `open_clip` and `load_clip` both read.

    Args:
        folder: where the files go.
        model: an open_clip model with its preprocessing set.
        tokenizer: its tokenizer.
        name: of the architecture.
        source: where the weights came from.
        model_cfg: open_clip's configuration of the architecture.

    Raises:
        InvalidClip: the text tower gives no features per token.
    """
    text = TextTower(model, tokenizer)
    preprocess: dict[str, Any] = dict(model.visual.preprocess_cfg)
    config = {"model_cfg": dict(model_cfg), "preprocess_cfg": preprocess}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))
    weights = {key: value.contiguous().cpu() for key, value in model.state_dict().items()}
    # Bytes first: a full disk is then an OSError like everywhere else.
    (folder / WEIGHTS_FILE).write_bytes(save(weights))
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))
    picture = PictureFormat.of(model)
    example = text.encode(["a"])
    ClipIdentity(
        model=name,
        source=source,
        weights_sha256=file_sha256(folder / WEIGHTS_FILE),
        config_sha256=file_sha256(folder / CONFIG_FILE),
        tokenizer=type(tokenizer).__name__,
        context_length=example.tokens.shape[1],
        width=example.tokens.shape[2],
        embed_dim=example.pooled.shape[1],
        image_size=picture.size,
        image_mean=picture.mean,
        image_std=picture.std,
    ).save(folder)


def import_clip(source: str, folder: Path) -> ClipIdentity:
    """Copies the towers of `local-dir:PATH` or `MODEL/TAG` into a self-contained folder.

    Raises:
        InvalidClip: open_clip cannot load them, or they give no features per token.
    """
    model, tokenizer = open_model(source)
    if source.startswith("local-dir:"):
        origin = Path(source.removeprefix("local-dir:"))
        model_cfg = json.loads((origin / CONFIG_FILE).read_text())["model_cfg"]
        name = origin.name
        for path in origin.iterdir():
            if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES:
                shutil.copy(path, folder)
    else:
        name = source.rpartition("/")[0]
        model_cfg = open_clip.get_model_config(name)
        if model_cfg is None:
            raise InvalidClip(f"open_clip has no configuration for {name!r}: list them with open_clip.list_models()")
    save_clip(folder, model, tokenizer, name=name, source=source, model_cfg=model_cfg)
    return ClipIdentity.load(folder)
