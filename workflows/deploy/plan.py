"""What a training run and its service need beyond this machine, by counting operations.

    time = operations / (peak rate of the GPU * utilisation)

Operations are counted, peaks are the makers', and `UTILISATION` is the one constant that is fitted: to the public runs
in deploy/SCALING.md, which a test checks. Storage is the sum of what the cache and the checkpoints hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from workflows.config.schema import EmbedMode
from workflows.errors import InvalidConfig

UTILISATION: Final = 0.30
"""Share of the peak that training, encoding and sampling reach; between 27% (MosaicML) and 32% (Anyscale)."""
PEAK: Final = {"a100": 312e12, "h100": 989e12, "h200": 989e12}
"""FLOP/s in bf16, dense, of the SXM boards; NVIDIA's data sheets."""
_HALF: Final = 2
_FULL: Final = 4
_MEAN_AND_DEVIATION: Final = 2
_BACKWARD: Final = 3
_ADAM_COPIES: Final = 4  # weights, their average, two moments
_KEPT: Final = 2
_PICTURES: Final = re.compile(r"(?P<images>[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)(?:@(?P<pixels>[0-9]+))?")
_TEXT_BYTES: Final = 100
"""A caption in the cache takes so many bytes: its text, its key, its checksum."""
STORAGE_PRICE: Final = 23.0
"""A TB costs so much for a month: S3's list price in dollars."""
_HOURS_PER_MONTH: Final = 730.0
_BUSY: Final = 0.7
"""Share of the time that a replica may be busy before requests wait."""

Gpu = Literal["a100", "h100", "h200"]
ModelName = Literal["sd2"]


@final
@dataclass(frozen=True)
class Model:
    """A latent-diffusion model with frozen encoders.

    Attributes:
        parameters: of the denoiser.
        forward: operations of one call of the denoiser for one picture, by resolution in pixels.
        encode: operations that turn one picture into its latent, by resolution.
        caption: operations that encode one caption.
        latent: values of one latent, by resolution.
        token_values: values kept of one caption, in fp16 (`embed.dtype: float16`).
        pooled_values: values of its pooled vector, in fp32.
    """

    parameters: int
    forward: dict[int, float]
    encode: dict[int, float]
    caption: float
    latent: dict[int, int]
    token_values: int
    pooled_values: int


# Counted with torch's FlopCounterMode on diffusers' UNet2DConditionModel and AutoencoderKL in Stable Diffusion 2's
# configuration (tests/deploy/test_plan.py counts again). The caption: 24 layers of width 1024 over 77 tokens.
MODELS: Final[dict[ModelName, Model]] = {
    "sd2": Model(
        parameters=865_910_724,
        forward={256: 181_090_467_840, 512: 804_257_464_320},
        encode={256: 272_722_165_760, 512: 1_116_658_466_816},
        caption=24 * (24 * 1024**2 * 77 + 4 * 77**2 * 1024),
        latent={256: 4 * 32 * 32, 512: 4 * 64 * 64},
        token_values=77 * 1024,
        pooled_values=1024,
    )
}


@final
@dataclass(frozen=True)
class Phase:
    """Pictures that training sees at one resolution."""

    images: float
    pixels: int


@final
@dataclass(frozen=True)
class Estimate:
    """The answer.

    Attributes:
        encode_hours: GPU-hours to encode each different picture and its caption once.
        train_hours: GPU-hours of training on what was encoded.
        online_factor: how much longer training takes that encodes as it goes.
        latent_bytes: of all latents, each a mean and a deviation in fp32, as the cache holds them.
        caption_bytes: of all captions' features, each kept once (`embed.mode: cached`).
        text_bytes: of the captions' text, about 100 bytes each (`embed.mode: online`).
        caption_hours: GPU-hours to encode every caption again, as often as training meets it beyond the first time.
        checkpoint_bytes: of one checkpoint: weights, average, optimizer, in fp32.
        kept_bytes: of the checkpoints that are kept.
        seconds_per_image: of sampling on one GPU.
        replicas: for the load.
    """

    encode_hours: float
    train_hours: float
    online_factor: float
    latent_bytes: float
    caption_bytes: float
    text_bytes: float
    caption_hours: float
    checkpoint_bytes: float
    kept_bytes: float
    seconds_per_image: float
    replicas: int


def read_phase(text: str) -> Phase:
    """`1.2e9@256`; without `@`, 512 pixels.

    Raises:
        InvalidConfig: no number.
    """
    match = _PICTURES.fullmatch(text.lower())
    if match is None or float(match["images"]) == 0:
        raise InvalidConfig(f"--images {text}: wanted NUMBER or NUMBER@PIXELS, such as 2e9 or 1.2e9@256")
    return Phase(float(match["images"]), int(match["pixels"] or 512))


def estimate(
    model: Model,
    phases: Sequence[Phase],
    gpu: Gpu,
    *,
    epochs: float = 1.0,
    images_per_second: float = 1.0,
    num_steps: int = 50,
) -> Estimate:
    """Counts it all.

    Args:
        model: what is trained.
        phases: different pictures, by resolution.
        gpu: the kind.
        epochs: how often training sees each picture.
        images_per_second: load of the service, at the last phase's resolution.
        num_steps: of a picture, each with classifier-free guidance (two calls).

    Raises:
        InvalidConfig: a resolution for which nothing was counted.
    """
    for phase in phases:
        if phase.pixels not in model.forward:
            known = ", ".join(map(str, model.forward))
            raise InvalidConfig(
                f"--images ...@{phase.pixels}: operations were counted at {known} pixels: give one of them"
            )
    rate = PEAK[gpu] * UTILISATION
    encode = sum(phase.images * (model.encode[phase.pixels] + model.caption) for phase in phases)
    train = epochs * sum(phase.images * _BACKWARD * model.forward[phase.pixels] for phase in phases)
    images = sum(phase.images for phase in phases)
    checkpoint = model.parameters * _FULL * _ADAM_COPIES
    seconds = num_steps * 2 * model.forward[phases[-1].pixels] / rate
    return Estimate(
        encode_hours=encode / rate / 3600,
        train_hours=train / rate / 3600,
        online_factor=1.0 + epochs * encode / train,
        latent_bytes=_FULL * _MEAN_AND_DEVIATION * sum(phase.images * model.latent[phase.pixels] for phase in phases),
        caption_bytes=images * (_HALF * model.token_values + _FULL * model.pooled_values),
        text_bytes=images * _TEXT_BYTES,
        caption_hours=max(0.0, epochs - 1.0) * images * model.caption / rate / 3600,
        checkpoint_bytes=checkpoint,
        kept_bytes=_KEPT * checkpoint,
        seconds_per_image=seconds,
        replicas=max(1, math.ceil(images_per_second * seconds / _BUSY)),
    )


def cheaper_captions(
    made: Estimate, num_gpus: int, price: float, storage_price: float
) -> tuple[EmbedMode, float, float]:
    """Compares the costs of `embed.mode`: returns the cheaper mode, the cost of cached captions, and of online ones.

    Encoding each caption once costs the same in both, and is left out.

    Args:
        made: the estimate.
        num_gpus: that train.
        price: of a GPU-hour.
        storage_price: of a TB for a month; features are stored while training lasts, a month at least.
    """
    months = max(1.0, (made.encode_hours + made.train_hours) / num_gpus / _HOURS_PER_MONTH)
    cached = (made.caption_bytes - made.text_bytes) / 1e12 * storage_price * months
    online = made.caption_hours * price
    return "cached" if cached < online else "online", cached, online


def estimate_text(made: Estimate, num_gpus: int, price: float, storage_price: float = STORAGE_PRICE) -> str:
    """One line per figure."""
    hours = made.encode_hours + made.train_hours
    mode, cached, online = cheaper_captions(made, num_gpus, price, storage_price)
    lines = {
        "latents": f"{made.latent_bytes / 1e12:,.1f} TB",
        "captions": f"{made.caption_bytes / 1e12:,.1f} TB of features, or {made.text_bytes / 1e12:,.1f} TB of text, "
        f"if no two are the same",
        "embed.mode": f"{mode} is cheaper: features cost {cached:,.0f} to store, encoding again {online:,.0f}",
        "checkpoint": f"{made.checkpoint_bytes / 1e9:,.1f} GB, {made.kept_bytes / 1e9:,.1f} GB for those that are kept",
        "encoding": f"{made.encode_hours:,.0f} GPU-hours, once",
        "training": f"{made.train_hours:,.0f} GPU-hours; {made.online_factor:.2f} times that if it encodes as it goes",
        "time": f"{hours / num_gpus / 24:,.1f} days on {num_gpus} GPUs",
        "cost": f"{hours * price:,.0f} at {price:g} a GPU-hour",
        "a picture": f"{made.seconds_per_image:.2f} s",
        "replicas": f"{made.replicas} for the load, each busy {_BUSY:.0%} of the time",
    }
    return "\n".join(f"{name:18}{value}" for name, value in lines.items())
