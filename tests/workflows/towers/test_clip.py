"""The towers against open_clip's own functions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from tests.workflows.embed.conftest import build_tiny, write_tiny
from workflows.data.pixels import to_data
from workflows.errors import InvalidClip
from workflows.towers.clip import Clip, ImageTower, TextTower, load_clip, open_model
from workflows.towers.clip_files import import_clip
from workflows.towers.identity import ClipIdentity

CAPTIONS = ["a handwritten seven", "the digit 3", "seven, written by hand, and then some more words than fit in here"]


@pytest.fixture(scope="module")
def clip(tiny_folder: Path) -> Clip:
    return load_clip(tiny_folder)


@pytest.fixture(scope="module")
def bare(tiny_folder: Path) -> Any:
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tiny_folder}")
    return model.eval().requires_grad_(False)


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_end_of_a_caption_projects_to_its_pooled_vector(clip: Clip, bare: Any) -> None:
    tokens, mask, pooled = clip.text.encode(CAPTIONS)
    assert tokens.shape == (3, 12, 16)
    assert pooled.shape == (3, 8)
    ends = mask.sum(1) - 1
    projected = tokens[torch.arange(3), ends] @ bare.text_projection
    expected = bare.encode_text(clip.text.tokenize(CAPTIONS))
    torch.testing.assert_close(projected, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pooled, nn.functional.normalize(expected, dim=-1), rtol=1e-5, atol=1e-6)


def test_the_mask_ends_with_the_caption(clip: Clip) -> None:
    tokens, mask, _ = clip.text.encode(CAPTIONS)
    ids = clip.text.tokenize(CAPTIONS)
    assert mask.sum(1).tolist() == [5, 5, 12]
    assert (ids[~mask] == 0).all()
    assert (tokens[~mask] == 0).all()
    assert (tokens[mask].abs().sum(1) > 0).all()


def test_a_caption_does_not_depend_on_its_neighbours(clip: Clip) -> None:
    together = clip.text.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        for whole, alone in zip(together, clip.text.encode([caption]), strict=True):
            torch.testing.assert_close(whole[row], alone[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together.pooled[0], together.pooled[1])


def test_pictures_of_the_towers_size_are_encoded_as_open_clip_does(clip: Clip, tiny_folder: Path, bare: Any) -> None:
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_folder}")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = bare.encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)
    found = clip.image.encode(to_data(pixels.transpose(2, 0, 1))[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (5, 5)])
def test_other_sizes_are_resized_and_cropped_as_open_clip_does(
    clip: Clip, tiny_folder: Path, bare: Any, size: tuple[int, int]
) -> None:
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_folder}")
    h, w = size
    smooth = 127 + 100 * np.sin(np.arange(h)[:, None, None] / 3 + np.arange(w)[None, :, None] / 4 + np.arange(3))
    pixels = smooth.round().astype(np.uint8)
    expected = bare.encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)
    found = clip.image.encode(to_data(pixels.transpose(2, 0, 1))[None])
    shifted = clip.image.encode(to_data(pixels.transpose(2, 0, 1)).roll(1, -1)[None])
    # Rounding to whole pixel values, which only PIL does, matters little beside a shift by one pixel.
    assert float((found - expected).norm()) < 0.2 * float((shifted - expected).norm())


def test_a_gray_picture_is_three_equal_channels(clip: Clip) -> None:
    gray = pictures(2, 1, 8, 8)
    torch.testing.assert_close(clip.image.encode(gray), clip.image.encode(gray.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 16, 16)])
def test_the_gradient_to_the_pictures_is_the_slope(clip: Clip, shape: tuple[int, ...]) -> None:
    images = pictures(*shape).requires_grad_()
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    target = clip.text.encode(CAPTIONS[:2]).pooled

    def similarity(x: torch.Tensor) -> torch.Tensor:
        return (clip.image.encode(x) * target).sum()

    (gradient,) = torch.autograd.grad(similarity(images), images)
    step = 1e-2
    slope = (similarity(images + step * direction) - similarity(images - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope.detach()), rel=0.02, abs=1e-4)
    assert float(gradient.abs().max()) > 1e-4


def test_other_channels_are_refused(clip: Clip) -> None:
    with pytest.raises(InvalidClip, match=r"shape \(2, 4, 8, 8\), wanted"):
        clip.image.encode(pictures(2, 4, 8, 8))


def test_a_saved_model_is_loaded_unchanged(clip: Clip) -> None:
    model, tokenizer = build_tiny()
    fresh = TextTower(model.eval().requires_grad_(False), tokenizer).encode(CAPTIONS)
    torch.testing.assert_close(clip.text.encode(CAPTIONS).tokens, fresh.tokens, rtol=0, atol=0)
    torch.testing.assert_close(clip.image.encode(pictures(2, 3, 8, 8)), ImageTower(model).encode(pictures(2, 3, 8, 8)))
    assert clip.logit_scale == pytest.approx(1 / 0.07)
    assert (clip.identity.context_length, clip.identity.width, clip.identity.embed_dim) == (12, 16, 8)
    assert clip.identity.image_size == (8, 8)


def test_a_local_folder_is_imported_whole(tiny_folder: Path, clip: Clip, tmp_path: Path) -> None:
    identity = import_clip(f"local-dir:{tiny_folder}", tmp_path)
    assert identity.weights_sha256 == clip.identity.weights_sha256
    assert identity.source == f"local-dir:{tiny_folder}"
    found, expected = load_clip(tmp_path).text.encode(CAPTIONS), clip.text.encode(CAPTIONS)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=0)


def test_a_tower_that_reads_its_padding_shows_it(tmp_path: Path) -> None:
    """SigLIP's kind: its own text transformer, no causal mask, pooled at the last token."""
    text = {"context_length": 6, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    model = open_clip.CustomTextCLIP(
        embed_dim=8,
        vision_cfg={"image_size": 8, "layers": 1, "width": 16, "patch_size": 4, "head_width": 16},
        text_cfg=text | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        output_dict=True,
    )
    model.eval().requires_grad_(False)
    encoded = TextTower(model, open_clip.SimpleTokenizer(context_length=6)).encode(["a b", "c"])
    assert encoded.mask.all()
    torch.testing.assert_close(
        model.text.text_projection(encoded.tokens[:, -1]),
        model.encode_text(open_clip.SimpleTokenizer(context_length=6)(["a b", "c"])),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_text_tower_without_token_features_is_refused() -> None:
    _, tokenizer = build_tiny()
    custom = open_clip.CustomTextCLIP(
        embed_dim=8,
        vision_cfg={"image_size": 8, "layers": 1, "width": 16, "patch_size": 4, "head_width": 16},
        text_cfg={"context_length": 6, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    )
    TextTower(custom, tokenizer)
    # What open_clip wraps a Hugging Face text model in has no `forward_intermediates`.
    assert not hasattr(open_clip.hf_model.HFTextEncoder, "forward_intermediates")
    custom.text = nn.Identity()
    with pytest.raises(InvalidClip, match="Identity gives no features per token"):
        TextTower(custom, tokenizer)


@pytest.mark.parametrize(
    "source", ["nonsense", "", "ViT-B-32/no-such-tag", "no-such-model/openai", "local-dir:/no/such"]
)
def test_a_source_that_does_not_load_is_named(source: str) -> None:
    with pytest.raises(InvalidClip, match="local-dir:PATH"):
        open_model(source)


def damage_weights(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").write_bytes(b"no tensors")


def damage_config(folder: Path) -> None:
    values = json.loads((folder / "open_clip_config.json").read_text())
    values["model_cfg"]["embed_dim"] = 9
    (folder / "open_clip_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        damage_config,
        lambda folder: (folder / "open_clip_model.safetensors").unlink(),
        lambda folder: (folder / "open_clip_config.json").unlink(),
        lambda folder: (folder / "clip.json").unlink(),
        lambda folder: (folder / "clip.json").write_text("[1]"),
        lambda folder: (folder / "clip.json").write_text('{"model": "x"}'),
    ],
)
def test_a_damaged_folder_is_refused(tiny_folder: Path, tmp_path: Path, damage: Any) -> None:
    shutil.copytree(tiny_folder, tmp_path / "towers")
    load_clip(tmp_path / "towers")
    damage(tmp_path / "towers")
    with pytest.raises(InvalidClip, match=str(tmp_path)):
        load_clip(tmp_path / "towers")


def test_identity_tells_weights_and_size_apart(tiny_folder: Path, tmp_path: Path) -> None:
    same, larger = ClipIdentity.load(tiny_folder), ClipIdentity.load(write_tiny(tmp_path / "larger", image_size=16))
    assert ClipIdentity.load(write_tiny(tmp_path / "again")) == same
    assert larger.weights_sha256 != same.weights_sha256
    assert larger.config_sha256 != same.config_sha256
