"""The plan's operations are counted again, and its hours compared with public runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from workflows.cli import app as cli
from workflows.deploy.plan import MODELS, UTILISATION, Phase, cheaper_captions, estimate, estimate_text, read_phase
from workflows.errors import InvalidConfig

SD2 = MODELS["sd2"]
# What both runs trained on: https://github.com/mosaicml/diffusion, "How many GPUs do I need?".
SEEN = [Phase(1_126_400_000, 256), Phase(1_740_800_000, 512)]


@pytest.mark.parametrize("pixels", [256, pytest.param(512, marks=pytest.mark.slow)])
def test_the_operations_are_those_of_stable_diffusion_2(pixels: int) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(
            sample_size=64,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks)
        side = pixels // 8
        with FlopCounterMode(display=False) as denoise:
            unet(torch.empty(1, 4, side, side), torch.empty(1, dtype=torch.long), torch.empty(1, 77, 1024))
        with FlopCounterMode(display=False) as encode:
            vae.encode(torch.empty(1, 3, pixels, pixels))
    assert sum(one.numel() for one in unet.parameters()) == SD2.parameters
    assert denoise.get_total_flops() == SD2.forward[pixels]
    assert encode.get_total_flops() == SD2.encode[pixels]
    assert SD2.latent[pixels] == 4 * side * side


def test_hours_are_those_of_two_public_runs_within_a_quarter() -> None:
    found = estimate(SD2, SEEN, "a100")
    mosaic = 81.33 * 24 * 8  # days on 8 A100, encoded before
    images_per_second = 60.0  # Anyscale: an A100, over both resolutions
    anyscale = sum(phase.images for phase in SEEN) / images_per_second / 3600
    for published in (mosaic, anyscale):
        assert published * 0.75 < found.train_hours < published * 1.25
    assert 1.4 * 0.75 < found.online_factor < 1.4 * 1.25, "MosaicML: 1.4 times as long without encoding before"


def test_the_hours_follow_work_and_gpu() -> None:
    one, twice = (estimate(SD2, [Phase(1e6, 512)], "a100", epochs=epochs) for epochs in (1, 2))
    assert twice.train_hours == 2 * one.train_hours
    assert twice.encode_hours == one.encode_hours
    assert twice.online_factor == one.online_factor
    faster = estimate(SD2, [Phase(1e6, 512)], "h100")
    assert faster.train_hours == pytest.approx(one.train_hours * 312 / 989)
    assert one.train_hours == pytest.approx(1e6 * 3 * 804_257_464_320 / (312e12 * UTILISATION) / 3600)


def test_storage_and_replicas_are_counted() -> None:
    found = estimate(SD2, [Phase(10, 512)], "a100", images_per_second=10.0, num_steps=50)
    assert found.latent_bytes == 10 * 4 * 64 * 64 * 2 * 4
    assert found.caption_bytes == 10 * (77 * 1024 * 2 + 1024 * 4)
    assert found.checkpoint_bytes == 865_910_724 * 16
    assert (found.replicas - 1) * 0.7 < 10.0 * found.seconds_per_image <= found.replicas * 0.7
    assert estimate(SD2, [Phase(10, 512)], "a100", images_per_second=0.0).replicas == 1


def test_the_cheaper_mode_weighs_storing_against_encoding_again() -> None:
    """One epoch encodes each caption once either way; a hundred encode it ninety-nine times more."""
    once, often = (estimate(SD2, [Phase(1e6, 512)], "a100", epochs=epochs) for epochs in (1, 100))
    mode, cached, online = cheaper_captions(once, 8, 2.0, 23.0)
    assert (mode, online) == ("online", 0.0)
    assert cached == pytest.approx(1e6 * (77 * 1024 * 2 + 1024 * 4 - 100) / 1e12 * 23.0)
    mode, cached, online = cheaper_captions(often, 8, 2.0, 23.0)
    assert mode == "cached"
    assert online == pytest.approx(99 * 1e6 * SD2.caption / (312e12 * UTILISATION) / 3600 * 2.0)
    assert cheaper_captions(often, 8, 2.0, 23_000.0)[0] == "online", (
        "negative control: storage a thousand times as dear"
    )


@pytest.mark.parametrize(("text", "phase"), [("2e9", Phase(2e9, 512)), ("1.5E3@256", Phase(1500, 256))])
def test_pictures_are_read(text: str, phase: Phase) -> None:
    assert read_phase(text) == phase


@pytest.mark.parametrize("text", ["", "many", "0", "1..2", "-3", "2e9@", "2e9@wide"])
def test_what_is_no_number_is_told(text: str) -> None:
    with pytest.raises(InvalidConfig, match="wanted NUMBER or NUMBER@PIXELS"):
        read_phase(text)


def test_an_uncounted_resolution_is_told() -> None:
    with pytest.raises(InvalidConfig, match="counted at 256, 512 pixels"):
        estimate(SD2, [Phase(1, 1024)], "a100")


def test_the_command_prints_what_the_page_shows() -> None:
    options = ["plan", "--images", "1.1264e9@256", "--images", "1.7408e9@512", "--gpus", "256", "--price", "2"]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == estimate_text(estimate(SD2, SEEN, "a100"), 256, 2.0)
    page = (Path(__file__).parents[2] / "deploy" / "SCALING.md").read_text()
    assert result.output.strip() in page
    assert "raverse " + " ".join(options) in page
