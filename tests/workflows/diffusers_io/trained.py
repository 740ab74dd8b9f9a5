"""A tiny Stable Diffusion that draws some digits, or shapes in some colours: what the demonstration fine-tunes.

Plain torch and diffusers, as if somebody else had trained it: nothing of this project's training.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import functional

from tests.workflows.diffusers_io.pipelines import STABLE, ZERO, tokenizer_files
from workflows.data.builtin.digits import digits
from workflows.data.builtin.shapes import shapes
from workflows.data.dataset import Split
from workflows.data.pixels import to_data

_BATCH: Final = 16
_AUTOENCODER_STEPS: Final = 300
_STEPS: Final = 1000
_WORDS: Final = 20.0
_HIDDEN: Final = 0.1


@final
@dataclass(frozen=True)
class Subject:
    """What the base draws, and what it has never seen.

    Attributes:
        source: the data set.
        attribute: in which the unseen pictures differ, and its place among the attributes.
        place: of that attribute.
        unseen: its values that the base is not trained on.
        widths: of the autoencoder; each but the first halves the sides.
        samples: of the data.
    """

    source: str
    attribute: str
    place: int
    unseen: tuple[str, ...]
    widths: tuple[int, ...]
    samples: int

    def read(self) -> Split:
        """The training split."""
        return digits(0.2, 0)[0] if self.source == "digits" else shapes(self.samples, 0.1, 0.0, 0)[0]


SUBJECTS: Final = {
    "digits": Subject("digits", "digit", 0, ("three", "seven"), (32, 32), 1797),
    "shapes": Subject("shapes", "color", 1, ("yellow", "purple"), (16, 32, 32), 2400),
}


def make_base(folder: Path, subject: Subject) -> Path:
    """Trains the pipeline and saves it, unless it is there already: a minute for digits, ten for shapes.

    A call that was stopped leaves the autoencoder and the U-Net of some steps before, which the next one takes up.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(0)
    train = subject.read()
    pictures = to_data(train.images)
    finished = folder.with_name("autoencoder")
    if not finished.is_dir():
        _autoencoder(pictures, subject).save_pretrained(finished)
    vae = AutoencoderKL.from_pretrained(finished, local_files_only=True).eval().requires_grad_(False)
    torch.manual_seed(1)
    text, tokenizer = _text(folder.parent / "tokenizer")
    unet, scheduler = _unet(subject, train, pictures, vae, text, tokenizer, folder.with_name("unet.pt"))
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(partial)
    partial.rename(folder)
    return folder


def _autoencoder(pictures: Tensor, subject: Subject) -> Any:
    """Latents of about unit variance."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=subject.widths,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(subject.widths),
        up_block_types=("UpDecoderBlock2D",) * len(subject.widths),
        in_channels=pictures.shape[1],
        out_channels=pictures.shape[1],
        sample_size=pictures.shape[-1],
    )
    optimizer = torch.optim.AdamW(vae.parameters(), 4e-3)
    for step, rows in enumerate(_batches(torch.arange(len(pictures)), _AUTOENCODER_STEPS)):
        seen = pictures[rows]
        posterior = vae.encode(seen).latent_dist
        loss = functional.mse_loss(vae.decode(posterior.sample()).sample, seen) + 1e-5 * posterior.kl().mean()
        _update(optimizer, loss, step, _AUTOENCODER_STEPS, "autoencoder")
    with torch.no_grad():
        spread = float(vae.encode(pictures[:512]).latent_dist.mean.std())
    vae.register_to_config(scaling_factor=1.0 / spread)
    return vae


def _text(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    text = CLIPTextModel(config).eval().requires_grad_(False)
    # Words stand out from their places, as in a tower that has been trained.
    with torch.no_grad():
        text.get_input_embeddings().weight.mul_(_WORDS)
    return text, tokenizer_files(folder)


def _unet(
    subject: Subject, train: Split, pictures: Tensor, vae: Any, text: Any, tokenizer: Any, stopped: Path
) -> tuple[Any, Any]:
    """Learns v of the pictures that it sees, with a tenth of the captions hidden."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    scheduler = DDIMScheduler(**(STABLE | ZERO))
    unet = UNet2DConditionModel(
        sample_size=pictures.shape[-1] // 2 ** (len(subject.widths) - 1),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=64,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    known = torch.tensor(
        [row for row, values in enumerate(train.attributes) if values[subject.place] not in subject.unseen]
    )
    tokens, latents = _tokens(train, text, tokenizer), _latents(pictures, vae)
    optimizer = torch.optim.AdamW(unet.parameters(), 2e-3)
    done = torch.load(stopped, weights_only=True) if stopped.is_file() else {"step": 0}
    if done["step"]:
        unet.load_state_dict(done["unet"])
        optimizer.load_state_dict(done["optimizer"])
    for step, rows in enumerate(_batches(known, _STEPS - done["step"]), start=done["step"]):
        x0, noise = latents[rows], torch.randn(len(rows), *latents.shape[1:])
        time = torch.randint(0, 1000, (len(rows),))
        hidden = torch.rand(len(rows)) < _HIDDEN
        read = torch.where(hidden[:, None, None], tokens[-1], tokens[rows])
        found = unet(scheduler.add_noise(x0, noise, time), time, read).sample
        loss = functional.mse_loss(found, scheduler.get_velocity(x0, noise, time))
        _update(optimizer, loss, step, _STEPS, "unet")
        if (step + 1) % 25 == 0:
            torch.save({"step": step + 1, "unet": unet.state_dict(), "optimizer": optimizer.state_dict()}, stopped)
    return unet.eval(), scheduler


@torch.no_grad()
def _tokens(train: Split, text: Any, tokenizer: Any) -> Tensor:
    """Of each picture's first caption, and of the empty one at the end."""
    captions = [*(wordings[0] for wordings in train.captions), ""]
    ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return torch.cat([text(part)[0] for part in ids.split(256)])


@torch.no_grad()
def _latents(pictures: Tensor, vae: Any) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(256)]) * vae.config.scaling_factor


def _batches(rows: Tensor, steps: int) -> Iterator[Tensor]:
    for _ in range(steps):
        yield rows[torch.randint(0, len(rows), (_BATCH,))]


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, step: int, steps: int, name: str) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak", group["lr"]) * min(1.0, (step + 1) / 50) * (1.0 - 0.95 * step / steps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step + 1 == steps:
        print(f"{name}: step {step + 1} of {steps}, loss {float(loss.detach()):.4f}", flush=True)


if __name__ == "__main__":
    import sys

    make_base(Path(sys.argv[1]), SUBJECTS[sys.argv[2]])
