"""Tiny diffusers pipelines of random weights, made from configurations: no network."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import open_clip
import torch

os.environ["HF_HUB_OFFLINE"] = "1"


def shaken(model: Any, seed: int, scale: float = 0.05) -> Any:
    """Freshly made networks answer about zero: a comparison would pass on nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return model.eval()


def tokenizer_files(folder: Path, pad: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer from the vocabulary in open_clip's wheel."""
    from transformers import CLIPTokenizer

    packed = (Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = symbols + [f"{symbol}</w>" for symbol in symbols] + ["".join(merge.split()) for merge in merges]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77)


def stable_diffusion(
    folder: Path,
    scheduler: dict[str, Any],
    *,
    seed: int = 0,
    penultimate: bool = False,
    side: int = 8,
    channels: int = 3,
    widths: tuple[int, int] = (32, 64),
) -> Any:
    """A text pipeline on latents of that side, whose pictures are twice as large; saved, and as diffusers loads it."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=side,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
        attention_head_dim=[2, 4] if penultimate else 8,
        use_linear_projection=penultimate,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=2 * side,
        in_channels=channels,
        out_channels=channels,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_act="gelu" if penultimate else "quick_gelu",
        )
    )
    pipe = StableDiffusionPipeline(
        vae=shaken(vae, seed),
        text_encoder=shaken(text, seed + 1),
        tokenizer=tokenizer_files(folder / "tokenizer-files", "!" if penultimate else "<|endoftext|>"),
        unet=shaken(unet, seed + 2),
        scheduler=DDIMScheduler(**(STABLE | scheduler)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # The pipeline class changes some values as it is made; those of the test count.
    pipe.scheduler = DDIMScheduler(**(STABLE | scheduler))
    return _saved(pipe, folder)


def _saved(pipe: Any, folder: Path) -> Any:
    """Saves it and loads it anew: a scheduler in memory drops which values were left to their defaults."""
    pipe.save_pretrained(folder)
    loaded = type(pipe).from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


STABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
ZERO: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}


def ddpm_pixels(folder: Path, *, seed: int = 0, pipeline: str = "DDPMPipeline", **scheduler: Any) -> Any:
    """An unconditional pipeline on 8 x 8 pictures."""
    import diffusers

    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    kind = diffusers.DDPMScheduler if pipeline == "DDPMPipeline" else diffusers.DDIMScheduler
    return _saved(getattr(diffusers, pipeline)(unet=shaken(unet, seed), scheduler=kind(**scheduler)), folder)


def dit(folder: Path, *, seed: int = 0) -> Any:
    """A class-conditional pipeline with a learned variance, on 8 x 8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(seed)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    loaded = _saved(DiTPipeline(shaken(transformer, seed), shaken(vae, seed), DDIMScheduler(clip_sample=False)), folder)
    # Published checkpoints name their labels there; `save_pretrained` drops the names.
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": {"1": "goldfish, fish"}}))
    return loaded
