"""The text tower of a diffusers pipeline, computed by open_clip from the pipeline's own weights and tokenizer.

transformers keeps the projections q, k and v apart, open_clip has one `in_proj` (in that order). The published file
stays as it is: the names are translated as it is loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final, final

import torch
from open_clip.transformer import QuickGELU, TextTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from workflows.errors import InvalidCheckpoint, InvalidClip
from workflows.storage.hashing import file_sha256
from workflows.towers.features import EncodedText
from workflows.towers.identity import ClipIdentity

TEXT_ENCODER: Final = "text_encoder"
TOKENIZER: Final = "tokenizer"
WEIGHTS: Final = "model.safetensors"
_PREFIX: Final = "text_model."
_VOCABULARY: Final = 49408
_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
_NAMES: Final = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_BLOCK_NAMES: Final = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
# Not weights: a table of 0, 1, 2, .. that older files hold.
_IGNORED: Final = "embeddings.position_ids"


@final
class PipelineText:
    """Prompts to features, as the pipeline makes them: its padding, and no mask.

    Args:
        model: the tower.
        tokenizer: a transformers tokenizer.
        device: where it computes.
    """

    def __init__(self, model: TextTransformer, tokenizer: Any, device: torch.device | str = "cpu") -> None:
        self._model, self._tokenizer, self._device = model.to(device).eval().requires_grad_(False), tokenizer, device
        self._several = _of_several_vectors(frozenset(tokenizer.added_tokens_encoder))

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> EncodedText:
        """See `TextEncoder.encode`; every position counts, the padding too."""
        ids = self.tokenize(captions)
        # The tower reads its whole length; no position sees a later one.
        whole = functional.pad(ids, (0, self._model.context_length - ids.shape[1]))
        tokens: Tensor = self._model.forward_intermediates(
            whole, indices=1, normalize_intermediates=True, output_fmt="NLC", intermediates_only=True
        )["text_intermediates"][-1][:, : ids.shape[1]].float()
        ends = (ids == self._tokenizer.eos_token_id).int().argmax(dim=1)
        pooled = tokens[torch.arange(len(ids), device=ids.device), ends]
        return EncodedText(tokens, torch.ones_like(ids, dtype=torch.bool), functional.normalize(pooled, dim=-1))

    @property
    def max_tokens(self) -> int:
        """See `TextEncoder.max_tokens`."""
        return int(self._model.context_length) - len(self._tokenizer("").input_ids)

    def count(self, caption: str) -> int:
        """See `TextEncoder.count`."""
        marked = self._tokenizer(caption, verbose=False).input_ids
        return len(marked) - len(self._tokenizer("").input_ids)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(m, n) int64 token ids on the tower's device; n is the smaller one of the tokenizer's and the tower's."""
        length = min(self._model.context_length, self._tokenizer.model_max_length)
        texts = [self._with_all_vectors(caption) for caption in captions]
        ids: Tensor = self._tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(self._device)

    def _with_all_vectors(self, caption: str) -> str:
        """The caption, with all vectors of its learned words, as diffusers expands it."""
        if self._several:
            for word in sorted(self._several.keys() & set(self._tokenizer.tokenize(caption))):
                caption = caption.replace(word, self._several[word])
        return caption


def _of_several_vectors(learned: Set[str]) -> dict[str, str]:
    """Learned words that have several vectors, and all of them: `<x> <x>_1 <x>_2`."""
    found = {}
    for word in learned:
        more = itertools.takewhile(learned.__contains__, (f"{word}_{number}" for number in itertools.count(1)))
        found[word] = " ".join([word, *more])
    return {word: vectors for word, vectors in found.items() if vectors != word}


def load_text(folder: Path, device: str | torch.device = "cpu") -> PipelineText:
    """Loads the text tower of `text_encoder/` and `tokenizer/`.

    Raises:
        InvalidClip: the folder does not hold such a tower, or transformers is not installed.
    """
    try:
        from transformers import CLIPTokenizer
    except ImportError:
        raise InvalidClip("this text tower needs transformers: pip install 'raverse[diffusers]'") from None
    encoder = folder / TEXT_ENCODER
    try:
        config: dict[str, Any] = json.loads((encoder / "config.json").read_text())
        weights = load_file(encoder / WEIGHTS)
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True)
        _check_tokenizer(folder / TOKENIZER, tokenizer, config)
    except (OSError, ValueError, SafetensorError, TypeError) as error:
        raise InvalidClip(f"{folder} holds no CLIP text encoder with a tokenizer: {_first_line(error)}") from None
    model = _model(config)
    try:
        model.load_state_dict({name: value.float() for name, value in converted(weights).items()})
    except RuntimeError as error:
        raise InvalidClip(f"{encoder / WEIGHTS} does not fit its config.json: {_first_line(error)}") from None
    return PipelineText(model, tokenizer, device)


def _check_tokenizer(folder: Path, tokenizer: Any, config: Mapping[str, Any]) -> None:
    """Compares the words with the rows of the embedding table: without its files transformers makes up two words.

    Raises:
        InvalidClip: too few words, or a word that has no row.
    """
    words, rows = tokenizer.get_vocab(), int(config.get("vocab_size", _VOCABULARY))
    if len(words) < rows // 2:
        raise InvalidClip(
            f"{folder} has {len(words)} words, the text encoder reads {rows}: copy vocab.json and merges.txt, or "
            "tokenizer.json, of the pipeline"
        )
    last = max(words, key=words.__getitem__)
    if words[last] >= rows:
        raise InvalidClip(
            f"the word {last!r} of {folder} has number {words[last]}, the text encoder has {rows} rows: save the "
            "pipeline after `text_encoder.resize_token_embeddings(len(tokenizer))`"
        )


def describe_text(folder: Path, source: str) -> ClipIdentity:
    """Loads a tower that was just put there, and writes its `clip.json`.

    Raises:
        InvalidCheckpoint: it is no CLIP text tower that open_clip can compute.
    """
    try:
        example = load_text(folder).encode(["a"])
    except InvalidClip as error:
        raise InvalidCheckpoint(str(error)) from None
    identity = ClipIdentity(
        model="CLIPTextModel",
        source=source,
        weights_sha256=file_sha256(folder / TEXT_ENCODER / WEIGHTS),
        config_sha256=_settings_hash(folder),
        tokenizer="CLIPTokenizer",
        context_length=example.tokens.shape[1],
        width=example.tokens.shape[2],
        embed_dim=example.pooled.shape[1],
        image_size=(0, 0),
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
    )
    identity.save(folder)
    return identity


def converted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers `CLIPTextModel`'s weights under the names of open_clip's `TextTransformer`.

    Raises:
        InvalidClip: a weight that such a tower does not have.
    """
    named = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
    found = {_NAMES[name]: value for name, value in named.items() if name in _NAMES}
    for name, value in named.items():
        if name in _NAMES or name == _IGNORED:
            continue
        place, _, rest = name.removeprefix("encoder.layers.").partition(".")
        inner, _, kind = rest.rpartition(".")
        target = f"transformer.resblocks.{place}."
        if inner in _BLOCK_NAMES:
            found[f"{target}{_BLOCK_NAMES[inner]}.{kind}"] = value
        elif inner == "self_attn.q_proj":
            parts = [named.get(f"encoder.layers.{place}.self_attn.{p}_proj.{kind}") for p in "qkv"]
            if any(part is None for part in parts):
                raise InvalidClip(f"layer {place} of the text encoder lacks one of q_proj, k_proj, v_proj")
            found[f"{target}attn.in_proj_{kind}"] = torch.cat([part for part in parts if part is not None])
        elif inner not in ("self_attn.k_proj", "self_attn.v_proj"):
            raise InvalidClip(f"the text encoder has a weight {name!r}: wanted those of a CLIPTextModel")
    return found


def _model(config: Mapping[str, Any]) -> TextTransformer:
    name, activation = config.get("architectures", ["CLIPTextModel"]), str(config.get("hidden_act", "quick_gelu"))
    if activation not in _ACTIVATIONS or not any("CLIPTextModel" in str(part) for part in name or ["CLIPTextModel"]):
        raise InvalidClip(f"a text encoder {name} with {activation}: wanted CLIPTextModel, quick_gelu or gelu")
    width = int(config.get("hidden_size", 512))
    return TextTransformer(
        context_length=int(config.get("max_position_embeddings", 77)),
        vocab_size=int(config.get("vocab_size", _VOCABULARY)),
        width=width,
        heads=int(config.get("num_attention_heads", 8)),
        layers=int(config.get("num_hidden_layers", 12)),
        mlp_ratio=(int(config.get("intermediate_size", 4 * width)) + 0.5) / width,
        output_dim=0,
        proj_type="none",
        act_layer=_ACTIVATIONS[activation],
        norm_layer=_norm(float(config.get("layer_norm_eps", 1e-5))),
    )


def _norm(eps: float) -> Any:
    def make(width: int) -> nn.LayerNorm:
        return nn.LayerNorm(width, eps=eps)

    return make


def _settings_hash(folder: Path) -> str:
    """Of all that says how the weights are used: layers, activation, vocabulary, padding."""
    files = [folder / TEXT_ENCODER / "config.json", *sorted(p for p in (folder / TOKENIZER).rglob("*") if p.is_file())]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
