"""Both towers of an open_clip model, frozen, behind two small functions.

    TextTower.encode(captions)  -> tokens (m, n, d), mask (m, n), pooled (m, e)
    ImageTower.encode(images)   -> (b, e), differentiable with respect to the images

Both unit vectors live in the shared space of width e, so that logit_scale * image @ text is CLIP's
similarity (A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, https://arxiv.org/abs/2103.00020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from workflows.data.rows import rows_of
from workflows.errors import InvalidClip
from workflows.towers.features import EncodedText, TextEncoder
from workflows.towers.identity import ClipIdentity
from workflows.towers.pipeline_text import TEXT_ENCODER, load_text


@final
class TextTower:
    """Captions to features."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        if not _has_token_features(model):
            raise InvalidClip(
                f"the text tower {type(getattr(model, 'text', model)).__name__} gives no features per token: "
                f"use an open_clip model with its own text transformer, not a Hugging Face one"
            )
        self._model: Any = model
        self._tokenizer = tokenizer

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> EncodedText:
        """Encodes captions; what exceeds the context length is cut off.

        Args:
            captions: m of them, at least one.

        Returns:
            float32 features on the tower's device.
        """
        ids = self.tokenize(captions)
        mask = self._mask(ids)
        features = self._model.forward_intermediates(
            text=ids, text_indices=1, normalize_intermediates=True, text_output_fmt="NLC"
        )
        tokens = features["text_intermediates"][-1].float() * mask[..., None]
        return EncodedText(tokens, mask, functional.normalize(features["text_features"].float(), dim=-1))

    @property
    def max_tokens(self) -> int:
        """See `TextEncoder.max_tokens`."""
        return int(self.tokenize([""]).shape[1]) - _marks(self._tokenizer)

    def count(self, caption: str) -> int:
        """See `TextEncoder.count`."""
        return len(_tokens(self._tokenizer, caption)) - (
            0 if hasattr(self._tokenizer, "encode") else _marks(self._tokenizer)
        )

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(m, n) int64 token ids on the tower's device."""
        ids: Tensor = self._tokenizer(list(captions))
        return ids.to(self._model.logit_scale.device)

    def _mask(self, ids: Tensor) -> Tensor:
        text = getattr(self._model, "text", self._model)
        pool = getattr(text, "pool_type", None) or text.text_pool_type
        if pool in ("argmax", "eos"):
            ends = (ids == _eos_id(text)).int() if pool == "eos" else ids
            return torch.arange(ids.shape[1], device=ids.device) <= ends.argmax(dim=-1, keepdim=True)
        # Towers that pool elsewhere: without a causal mask they were trained to read their padding.
        return torch.ones_like(ids, dtype=torch.bool) if text.attn_mask is None else ids != text.pad_id


def _tokens(tokenizer: Any, caption: str) -> Sequence[int]:
    """All tokens of a caption, in one of the two kinds of tokenizers that open_clip has."""
    if hasattr(tokenizer, "encode"):
        plain: Sequence[int] = tokenizer.encode(caption)
        return plain
    clean = getattr(tokenizer, "clean_fn", str)
    marked: Sequence[int] = tokenizer.tokenizer(clean(caption), verbose=False).input_ids
    return marked


def _marks(tokenizer: Any) -> int:
    """Tokens that mark the ends of a caption."""
    return 2 if hasattr(tokenizer, "encode") else len(_tokens(tokenizer, ""))


@final
@dataclass(frozen=True)
class PictureFormat:
    """What an image tower takes: size (h, w), and mean and deviation of each channel in [0, 1]."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @staticmethod
    def of(model: Any) -> PictureFormat:
        """The format that an open_clip model carries."""
        values = model.visual.preprocess_cfg
        size, mean, std = values["size"], values["mean"], values["std"]
        return PictureFormat((size, size) if isinstance(size, int) else tuple(size), tuple(mean), tuple(std))

    def prepare(self, images: Tensor) -> Tensor:
        """Pictures in [-1, 1] as the tower wants them: three channels, its size, normalised.

        What the rows are says what they look like (`RowType.seen`). The shorter side is resized (bicubic, anti-aliased)
        and the middle is cut out.

        Args:
            images: (b, c, h, w) with one or three channels, or normalised vectors (b, d).

        Raises:
            InvalidClip: pictures of another shape.
        """
        images = rows_of(images.shape[1:]).seen(images, self.size)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InvalidClip(f"pictures of shape {tuple(images.shape)}, wanted (b, 1 or 3, h, w)")
        pixels = _resize(images.expand(-1, 3, -1, -1), self.size)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((pixels + 1) / 2 - mean) / std


@final
class ImageTower:
    """Pictures to unit vectors, with gradients to the pictures."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._format = PictureFormat.of(model)

    def encode(self, images: Tensor) -> Tensor:
        """Encodes pictures.

        Args:
            images: (b, c, h, w) in [-1, 1], with one or three channels, of any size; or normalised vectors (b, d).

        Returns:
            (b, e) float32 unit vectors, differentiable with respect to `images`.

        Raises:
            InvalidClip: pictures with another number of channels.
        """
        features: Tensor = self._model.encode_image(self._format.prepare(images.float()))
        return functional.normalize(features.float(), dim=-1)


@final
@dataclass(frozen=True)
class Clip:
    """Both towers, and the factor of their cosine in CLIP's softmax; an imported pipeline has a text tower only."""

    text: TextEncoder
    image_tower: ImageTower | None
    identity: ClipIdentity
    logit_scale: float

    @property
    def image(self) -> ImageTower:
        """The image tower.

        Raises:
            InvalidClip: there is none.
        """
        if self.image_tower is None:
            raise InvalidClip(f"{self.identity.model} reads text only: pictures need a CLIP with an image tower")
        return self.image_tower


def load_clip(folder: Path, device: str | torch.device = "cpu") -> Clip:
    """Loads the towers that the clip stage wrote.

    Args:
        folder: an open_clip local-dir, or the text tower of an imported pipeline, with `clip.json`.
        device: where the towers run.

    Raises:
        InvalidClip: the folder does not hold towers, or ones without features per token.
    """
    if (folder / TEXT_ENCODER).is_dir():
        return Clip(load_text(folder, device), None, ClipIdentity.load(folder), 1.0)
    identity = ClipIdentity.load(folder)
    model, tokenizer = open_model(f"local-dir:{folder}", device)
    return Clip(TextTower(model, tokenizer), ImageTower(model), identity, float(model.logit_scale.exp()))


def open_model(source: str, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """The frozen open_clip model and its tokenizer, from `local-dir:PATH` or `MODEL/TAG`.

    Raises:
        InvalidClip: open_clip cannot load it.
    """
    name, _, tag = (source, "", None) if source.startswith("local-dir:") else source.rpartition("/")
    hint = "give `train`, `local-dir:PATH`, or `MODEL/PRETRAINED_TAG`"
    if not name:
        raise InvalidClip(f"clip.source is {source!r}: {hint}")
    try:
        model = open_clip.create_model(
            name, pretrained=tag, device=torch.device(device), output_dict=True, require_pretrained=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, ImportError, SafetensorError) as error:
        raise InvalidClip(f"open_clip cannot load {source!r} ({error}): {hint}") from None
    return model.eval().requires_grad_(False), tokenizer


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    scale = max(want / have for want, have in zip(size, pixels.shape[-2:], strict=True))
    sides = [max(want, round(have * scale)) for want, have in zip(size, pixels.shape[-2:], strict=True)]
    resized = functional.interpolate(pixels, sides, mode="bicubic", antialias=True)
    top, left = ((have - want) // 2 for want, have in zip(size, sides, strict=True))
    return resized[..., top : top + size[0], left : left + size[1]]


def _has_token_features(model: nn.Module) -> bool:
    text = getattr(model, "text", model)
    return hasattr(model, "forward_intermediates") and hasattr(text, "forward_intermediates")


def _eos_id(text: Any) -> int:
    return int(text.eos_id if hasattr(text, "eos_id") else text.text_eos_id)
