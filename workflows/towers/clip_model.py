"""The small CLIP that a job trains, before it is trained: open_clip's configuration, model and tokenizer."""

from __future__ import annotations

import math
from typing import Any, Final

import open_clip
import torch

from workflows.config.schema import ClipConfig
from workflows.errors import InvalidClip

_VOCABULARY: Final = 49408
_VISION_HEAD_WIDTH: Final = 32
_TEXT_HEAD_WIDTH: Final = 16
_PIXEL_MEAN: Final = (0.5, 0.5, 0.5)


def model_config(config: ClipConfig, image_size: int) -> dict[str, Any]:
    """open_clip's configuration of the model that is trained here.

    Raises:
        InvalidClip: patches that do not fill the picture.
    """
    if image_size % config.patch_size:
        raise InvalidClip(
            f"clip.patch_size {config.patch_size} does not divide the {image_size} pixels of a side: give one that does"
        )
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": image_size,
            "layers": config.vision_layers,
            "width": config.vision_width,
            "patch_size": config.patch_size,
            "head_width": config.vision_width // _num_heads(config.vision_width, _VISION_HEAD_WIDTH),
        },
        "text_cfg": {
            "context_length": config.num_tokens,
            "vocab_size": _VOCABULARY,
            "width": config.text_width,
            "heads": _num_heads(config.text_width, _TEXT_HEAD_WIDTH),
            "layers": config.text_layers,
        },
    }


def _num_heads(width: int, head_width: int) -> int:
    """About `width / head_width` heads, as many as divide the width."""
    return math.gcd(width, max(1, width // head_width))


def build_model(config: ClipConfig, image_size: int) -> tuple[Any, Any]:
    """A fresh open_clip model, seeded by the configuration, and its tokenizer."""
    torch.manual_seed(config.seed)
    model: Any = open_clip.CLIP(**model_config(config, image_size), output_dict=True)
    preprocess = {"size": image_size, "mean": _PIXEL_MEAN, "std": _PIXEL_MEAN, "interpolation": "bicubic"}
    open_clip.set_model_preprocess_cfg(model, {"mode": "RGB", "resize_mode": "shortest", "fill_color": 0} | preprocess)
    return model, build_tokenizer(config)


def build_tokenizer(config: ClipConfig) -> Any:
    """Captions to token ids (m, context_length) int64."""
    return open_clip.SimpleTokenizer(context_length=config.num_tokens)
