"""Latents through a diffusers autoencoder of random weights in a local directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from workflows.errors import InvalidConfig
from workflows.towers.autoencoder import Autoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
    }
    model = AutoencoderKL(**blocks, latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.5)
    path = tmp_path_factory.mktemp("autoencoder")
    model.save_pretrained(path)
    return path


def test_pictures_become_scaled_latents_and_come_back(folder: Path) -> None:
    ours, theirs = Autoencoder.load(folder), AutoencoderKL.from_pretrained(folder)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    mean, std = ours.encode(images)
    assert mean.shape == std.shape == (3, 4, 8, 8)
    with torch.no_grad():
        posterior = theirs.encode(images.float() / 127.5 - 1.0).latent_dist
        assert torch.allclose(mean, posterior.mean * 0.5, atol=1e-6)
        assert torch.allclose(std, posterior.std * 0.5, atol=1e-6)
        assert torch.allclose(ours.decode(mean), theirs.decode(posterior.mean).sample, atol=1e-5)


def test_a_folder_without_an_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="holds no AutoencoderKL"):
        Autoencoder.load(tmp_path)
