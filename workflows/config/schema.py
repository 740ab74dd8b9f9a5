"""The one configuration of a job: what `--config NAME_OR_FILE` and `--set a.b=c` may say.

`RunConfig` is resolved once, frozen, logged, and handed to every stage. A stage's artifact depends on
its own section and on the artifacts that it reads, so changing `serve` re-trains nothing.
Fields carry their unit and meaning in `description`, and a mark where they do not always determine the result
(`workflows.config.keys`). `workflows.config.load` reads it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from workflows.config.keys import KeyedWhere, T, Unkeyed
from workflows.errors import InvalidRequest
from workflows.options.fields import guidance_fields, scales_type, sweep_fields
from workflows.options.guidance import DEFAULT_GUIDANCE, KINDS, SETTINGS, Guidance, GuidanceKind, SettingValue
from workflows.options.networks import NetworkName
from workflows.options.samplers import SAMPLERS, SPACINGS, SamplerName, SpacingName
from workflows.options.schedules import SCHEDULES, ScheduleName
from workflows.options.sources import BUILT_IN_DATA, SourceName

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Auto: TypeAlias = Literal["auto"]
Minutes = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
# Absolute from the start: Ray's workers change directory.
FolderPath = Annotated[str, AfterValidator(os.path.abspath)]


def _least_before_most(workers: int | tuple[int, int]) -> int | tuple[int, int]:
    if isinstance(workers, tuple) and workers[0] > workers[1]:
        raise ValueError(f"num_workers {list(workers)}: wanted [least, most]")
    return workers


def _number(value: int | Auto, name: str) -> int:
    """A setting that may be `auto`, once it is decided."""
    assert value != "auto", f"{name} is not decided yet"
    return value


def _minutes_go_with_auto(section: Any) -> None:
    if section.minutes is not None and section.steps != "auto":
        raise ValueError(f"minutes is the budget of steps: auto, and steps is {section.steps}: set steps=auto")


def _most(workers: int | tuple[int, int]) -> int:
    return workers if isinstance(workers, int) else workers[1]


Workers = Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], AfterValidator(_least_before_most)]
_ALMOST_A_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")


def _path_or_url(text: str) -> str:
    if "://" in text:
        if "#" in text:
            raise ValueError(f"{text!r} has a #, and what follows it would be ignored: take another name")
        return text
    if found := _ALMOST_A_URL.match(text):
        raise ValueError(f"{text!r} is no URL: wanted {found[1]}://, or ./{text} for a folder of this name")
    return str(Path(text).expanduser().absolute())


DataPath = Annotated[str, AfterValidator(_path_or_url)]


def _without_password(url: str) -> str:
    if urlsplit(url).password is not None:
        raise ValueError("a password in a URL ends up in files: give credentials in the environment")
    return url


def _color(name: str) -> str:
    from PIL import ImageColor

    ImageColor.getrgb(name)  # a ValueError names the colour
    return name


def _with_label(template: str) -> str:
    try:
        good = template.format(label="") != template.format(label="x")
    except (KeyError, IndexError, ValueError):
        good = False
    if not good:
        raise ValueError(f"{template!r}: wanted a text with {{label}}, such as 'a photo of a {{label}}'")
    return template


Color = Annotated[str, AfterValidator(_color)]
CaptionTemplate = Annotated[str, AfterValidator(_with_label)]
StorePath = Annotated[DataPath, AfterValidator(_without_password)]
RESERVED_NAMES: Final = ("artifacts", "mlartifacts", "mlflow.db")


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is kept for the job's own files: choose another name")
    return name


GuidanceText = Annotated[str, AfterValidator(lambda name: Guidance.of(name).name)]
"""A kind of guidance, or several joined by `+`."""


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def keyed(self) -> dict[str, Any]:
        """The fields that determine the result of a stage, as plain values."""
        fields = type(self).model_fields.items()
        names = {name for name, field in fields if all(mark.holds(self) for mark in _marks(field))}
        sections = {name: part.keyed() for name in names if isinstance(part := getattr(self, name), Section)}
        return self.model_dump(mode="json", include=names) | sections


def _marks(field: FieldInfo) -> list[KeyedWhere]:
    return [mark for mark in field.metadata if isinstance(mark, KeyedWhere)]


_OwnData = Annotated[T, KeyedWhere(lambda data: data.source not in BUILT_IN_DATA)]
_Shapes = Annotated[T, KeyedWhere(lambda data: data.source == "shapes")]


class DataConfig(Section):
    """Which captioned images to build or read, and how they are split."""

    source: SourceName = Field(
        description="A built-in data set, or the format of your own at `path` (auto: found out)."
    )
    path: _OwnData[DataPath | None] = Field(None, description="Folder, file or URL of your own captioned images.")
    image_column: _OwnData[str | None] = Field(
        None, description="Column or key of images or file names; default: the usual."
    )
    caption_column: _OwnData[str | None] = Field(
        None, description="Column or key of captions; default: the usual ones."
    )
    label_column: _OwnData[str | None] = Field(
        None, description="Column or key of the class; then every record needs one."
    )
    vector_columns: _OwnData[tuple[str, ...] | None] = Field(
        None, min_length=1, description="Columns of numbers (vectors); default: all but caption and label."
    )
    image_size: _OwnData[PositiveInt] = Field(
        32, description="Pixels of each side after resizing and cropping (your own)."
    )
    channels: _OwnData[Literal[1, 3]] = Field(3, description="1: gray, 3: RGB (your own).")
    max_pixels: _OwnData[PositiveInt] = Field(
        64_000_000, description="Pictures with more are refused undecoded (your own)."
    )
    max_caption_chars: _OwnData[PositiveInt] = Field(2000, description="Longer captions are cut (your own).")
    background: _OwnData[Color] = Field("white", description="Colour below transparent parts (your own).")
    caption_template: _OwnData[CaptionTemplate] = Field(
        "{label}", description="Caption of a picture whose folder names it, with `{label}` (your own)."
    )
    label_missing: _OwnData[Literal["drop", "refuse"]] = Field(
        "drop", description="Where some records have no label: drop all labels, or refuse those records (your own)."
    )
    max_bad_fraction: Unkeyed[Fraction] = Field(
        0.05, description="Share of unusable records that stops the job (your own)."
    )
    num_samples: _Shapes[PositiveInt] = Field(
        12_000, description="Pictures to generate (shapes; digits has 1,797 scans)."
    )
    held_out: Fraction = Field(0.2, description="Fraction of samples kept out of training.")
    unseen_combinations: _Shapes[Fraction] = Field(
        0.1, description="Fraction of attribute combinations never trained on (shapes)."
    )
    seed: int = Field(0, description="Seed of generation, wording and split.")
    store: Unkeyed[StorePath | None] = Field(
        None,
        description="Folder or URL where parts of new data go, such as s3://BUCKET/PATH; default: `storage.root`.",
    )

    @model_validator(mode="after")
    def _path_goes_with_its_source(self) -> DataConfig:
        own = self.source not in BUILT_IN_DATA
        if own and self.path is None:
            raise ValueError(f"data.source {self.source} needs data.path: a folder, a file or a URL")
        if not own and self.path is not None:
            raise ValueError(
                f"data.path goes with your own data, not with the built-in {self.source}: set data.source=auto"
            )
        return self


_TrainedHere = Annotated[T, KeyedWhere(lambda clip: clip.source == "train")]
_Sized = Annotated[T, KeyedWhere(lambda clip: clip.source == "train" and clip.size == "set")]
_Paced = Annotated[T, KeyedWhere(lambda section: section.steps == "auto")]


class ClipConfig(Section):
    """The text and image towers: trained here, or loaded with open_clip."""

    source: str = Field(
        "train", description="`train`, `local-dir:PATH`, or `MODEL/PRETRAINED_TAG` as open_clip names them."
    )
    size: _TrainedHere[Literal["set", "auto"]] = Field(
        "set", description="set: the widths and numbers of blocks below; auto: they grow with the pictures."
    )
    embed_dim: _Sized[PositiveInt] = Field(64, description="Width of the shared embedding (trained here).")
    text_width: _Sized[PositiveInt] = Field(64, description="Width of the text tower (trained here).")
    text_layers: _Sized[PositiveInt] = Field(2, description="Blocks of the text tower (trained here).")
    context_length: _TrainedHere[PositiveInt | Auto] = Field(
        "auto",
        description="Tokens per caption; auto: so many that 99 of 100 captions fit, 16 to 77 (trained here).",
    )
    vision_width: _Sized[PositiveInt] = Field(96, description="Width of the image tower (trained here).")
    vision_layers: _Sized[PositiveInt] = Field(3, description="Blocks of the image tower (trained here).")
    patch_size: _TrainedHere[PositiveInt] = Field(
        4, description="Pixels per patch side of the image tower (trained here)."
    )
    steps: _TrainedHere[PositiveInt | Auto] = Field(
        300, description="Optimizer steps; auto: 60 epochs, 300 steps at least, within `minutes` (trained here)."
    )
    minutes: _TrainedHere[_Paced[Minutes | None]] = Field(
        None, description="Minutes of training that steps: auto may take; default: 3 (trained here)."
    )
    batch_size: _TrainedHere[PositiveInt] = Field(64, description="Pictures per step (trained here).")
    learning_rate: _TrainedHere[float] = Field(1e-3, gt=0, description="Peak AdamW learning rate (trained here).")
    seed: _TrainedHere[int] = Field(0, description="Seed of weights and batches.")
    num_workers: Unkeyed[Workers] = Field(
        2, description="Ray Train workers; `[least, most]`: as many as the cluster has room for (trained here)."
    )
    sharding: Unkeyed[Literal["ddp", "fsdp"]] = Field(
        "ddp", description="DDP, or `fully_shard` (FSDP2) (trained here)."
    )
    accumulate: Unkeyed[PositiveInt] = Field(
        1, description="Parts in which a batch is computed; each is whole groups of distinct meanings (trained here)."
    )
    precision: _TrainedHere[Literal["fp32", "bf16", "auto"]] = Field(
        "auto", description="As the denoiser's (trained here)."
    )
    checkpoint_every: Unkeyed[PositiveInt] = Field(250, description="Steps between checkpoints (trained here).")
    cache_folder: Unkeyed[Path | None] = Field(
        None, description="Folder of each node for decoded pictures (trained here); default: one for temporary files."
    )

    @property
    def num_tokens(self) -> int:
        """Tokens per caption, once they are decided."""
        return _number(self.context_length, "clip.context_length")

    @model_validator(mode="after")
    def _budget_of_auto(self) -> Self:
        _minutes_go_with_auto(self)
        return self

    @property
    def most_workers(self) -> int:
        """The largest number of workers."""
        return _most(self.num_workers)


EmbedMode: TypeAlias = Literal["cached", "online"]


class EmbedConfig(Section):
    """The Ray Data pass that writes images and CLIP embeddings to shards."""

    mode: EmbedMode = Field(
        "cached", description="Where captions are encoded: once, before training (cached), or by its workers (online)."
    )

    batch_size: Unkeyed[PositiveInt] = Field(256, description="Captions per encoder call. Does not change the result.")
    workers: Unkeyed[PositiveInt] = Field(1, description="Encoder actors. Does not change the result.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="Storage type of the token embeddings; bfloat16 halves them, see deploy/SCALING.md."
    )
    rows_per_shard: PositiveInt = Field(4096, description="Rows of a shard at most; it has at most 64 MiB.")
    flips: bool = Field(False, description="Cache latents of mirrored pictures too, and train on both (latents).")
    share_captions: Unkeyed[bool] = Field(
        True, description="Keep encoded captions under `storage.root`/cache for later runs."
    )
    store: Unkeyed[StorePath | None] = Field(
        None,
        description="Folder or URL where shards of new caches go, such as s3://BUCKET/PATH; default: `storage.root`.",
    )


class ScheduleConfig(Section):
    """The noise schedule."""

    kind: ScheduleName = Field(SCHEDULES[0], description="Family of the schedule.")
    num_levels: PositiveInt = Field(1000, description="T: levels run from 0 (clean) to T (noise).")
    zero_terminal_snr: bool = Field(False, description="Rescale so that alpha_bar_T = 0 (needs v, u or x0).")
    shift: float = Field(1.0, gt=0, description="Of the flow schedule: more levels are noisy above 1.")

    @property
    def ends_in_noise(self) -> bool:
        """Whether alpha_bar_T = 0, where noise says nothing about the picture."""
        return self.zero_terminal_snr or self.kind == "flow"

    @model_validator(mode="after")
    def _shift_is_read(self) -> Self:
        if self.shift != 1.0 and self.kind != "flow":
            raise ValueError(f"shift belongs to the flow schedule: found kind {self.kind}; set kind=flow, or leave it")
        return self


class NetworkConfig(Section):
    """The size of a transformer; channels and text width come from the data and the CLIP."""

    kind: NetworkName = Field("dit", description="Architecture; for vectors it is always an MLP.")
    patch_size: PositiveInt = Field(2, description="Pixels per patch side.")
    stem: Literal["linear", "convolution"] = Field(
        "linear", description="How patches become vectors; convolutions want patches of 2, 4, 8, ... pixels."
    )
    width: PositiveInt = Field(128, description="Width of the blocks.")
    depth: PositiveInt = Field(4, description="Number of blocks.")
    num_heads: PositiveInt = Field(4, description="Attention heads.")
    mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of the feed-forward layers, relative to `width`.")


class TrainConfig(Section):
    """The training loop of denoiser and classifier; the CLIP's is the same, and says in `clip` what it needs of it."""

    num_workers: Unkeyed[Workers] = Field(
        2, description="Ray Train workers; `[least, most]`: as many as the cluster has room for, at any time."
    )
    sharding: Unkeyed[Literal["ddp", "fsdp", "hybrid"]] = Field(
        "fsdp", description="`fully_shard` (FSDP2), DDP, or hybrid: sharded in groups of `shard_size`, replicated over."
    )
    shard_size: Unkeyed[PositiveInt] = Field(1, description="Workers that share one copy of the weights (hybrid).")
    activation_checkpointing: Unkeyed[bool] = Field(False, description="Compute each block again in the backward pass.")
    cpu_offload: Unkeyed[bool] = Field(False, description="Keep sharded weights and AdamW's state in the CPU's memory.")
    steps: PositiveInt | Auto = Field(
        1000, description="Optimizer steps; auto: 200 epochs, 1000 steps at least, within `minutes`."
    )
    minutes: _Paced[Minutes | None] = Field(
        None, description="Minutes of training that steps: auto may take; default: 10."
    )
    batch_size: PositiveInt = Field(64, description="Global batch: samples per optimizer step over all workers.")
    accumulate: Unkeyed[PositiveInt] = Field(
        1, description="Parts in which a worker computes its share of a batch, one by one."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak AdamW learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    warmup_steps: int = Field(100, ge=0, description="Linear warm-up before the decay.")
    decay: Literal["cosine", "constant"] = Field("cosine", description="Of the learning rate after the warm-up.")
    clip_norm: float = Field(1.0, gt=0, description="Global gradient-norm clip.")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Decay of the exponential moving average (with warm-up); 0: the last weights."
    )
    ema_widths: tuple[Annotated[float, Field(gt=0, le=0.28)], ...] = Field(
        (), description="Relative widths of power-function averages kept beside it, such as [0.05, 0.1]."
    )
    snapshot_every: int = Field(
        0, ge=0, description="Steps between stored snapshots of those averages (0: only the last step's)."
    )
    condition_dropout: Fraction = Field(0.1, description="Share of samples trained without their condition.")
    weighting: Literal["simple", "min_snr", "snr_plus_one", "p2"] = Field(
        "simple", description="Weight of the loss over levels; snr_plus_one lets x0 learn from the error of v."
    )
    level_shift: float = Field(
        1.0, gt=0, description="Trains more on noisy levels above 1, on clean ones below; the median is s / (1 + s)."
    )
    level_density: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="Of the levels before the shift; logit_normal trains most on the middle ones."
    )
    shuffle_rows: PositiveInt = Field(
        65_536,
        description="Samples that are mixed with each other: those of this many rows of shards in a random order.",
    )
    cache_folder: Unkeyed[Path | None] = Field(
        None,
        description="Folder of each node for copies of shards from `embed.store`; default: one for temporary files.",
    )
    cache_bytes: Unkeyed[PositiveInt] = Field(
        32 << 30, description="Bytes of those copies; the ones that were not used for the longest time go first."
    )
    compile: bool = Field(False, description="`torch.compile` each block.")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "auto", description="Precision of matrix products; auto: bf16 on a GPU or a CPU with AMX, else fp32."
    )
    checkpoint_every: Unkeyed[PositiveInt] = Field(250, description="Steps between checkpoints.")
    keep_checkpoints: Unkeyed[int] = Field(
        2, ge=2, description="Checkpoints kept; fewer than two may leave a half-written one."
    )
    checkpoint_async: Unkeyed[bool] = Field(True, description="Write checkpoints while training goes on.")
    max_failures: Unkeyed[int] = Field(2, ge=0, description="Restarts after a lost worker.")
    sample_every: Unkeyed[Annotated[int, Field(ge=0)] | Auto] = Field(
        "auto",
        description="Steps between grids of pictures of the average (0: none); auto: after a minute at the earliest, "
        "and so that they take under 2% of the time.",
    )
    log_every: Unkeyed[PositiveInt] = Field(25, description="Steps between logged figures.")
    seed: int = Field(0, description="Seed of weights, plan, noise and dropout.")

    @property
    def num_steps(self) -> int:
        """Optimizer steps, once they are decided."""
        return _number(self.steps, "train.steps")

    @property
    def least_workers(self) -> int:
        """The smallest number of workers."""
        return self.num_workers if isinstance(self.num_workers, int) else min(self.num_workers)

    @property
    def most_workers(self) -> int:
        """The largest number of workers."""
        return _most(self.num_workers)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.cpu_offload and self.sharding == "ddp":
            raise ValueError("cpu_offload needs sharded weights: set sharding to fsdp or hybrid")
        if self.snapshot_every and not self.ema_widths:
            raise ValueError("snapshot_every stores power-function averages: set ema_widths, such as [0.05, 0.1]")
        _minutes_go_with_auto(self)
        return self


_WithLora = Annotated[T, KeyedWhere(lambda lora: lora.rank > 0)]


class LoraConfig(Section):
    """Low-rank matrices that are trained beside an imported network, whose own weights stay as they are."""

    rank: int = Field(0, ge=0, description="Rank of the matrices; 0: all weights are trained.")
    alpha: _WithLora[float] = Field(8.0, gt=0, description="Their output counts alpha / rank times.")
    targets: _WithLora[tuple[str, ...]] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="Ends of the names of the layers that get them."
    )


_FromNothing = Annotated[T, KeyedWhere(lambda denoiser: denoiser.base is None)]
_FineTuned = Annotated[T, KeyedWhere(lambda denoiser: denoiser.base is not None)]


class DenoiserConfig(Section):
    """The denoiser: network, schedule, parameterization and training."""

    base: Unkeyed[str | None] = Field(
        None,
        description="Imported model to fine-tune: NAME@ALIAS, NAME/VERSION or a package's folder. Network, schedule, "
        "parameterization, text tower and autoencoder are its own.",
    )
    lora: _FineTuned[LoraConfig] = LoraConfig()
    network: _FromNothing[NetworkConfig] = NetworkConfig()
    schedule: _FromNothing[ScheduleConfig] = ScheduleConfig()
    parameterization: _FromNothing[Literal["x0", "eps", "v", "u"]] = Field(
        "v",
        description="What the network predicts: the picture, the noise, their rotation v, or the flow's velocity u.",
    )
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _lora_has_a_base(self) -> Self:
        if self.lora.rank and self.base is None:
            raise ValueError("denoiser.lora trains matrices beside an imported network: set denoiser.base")
        return self

    @model_validator(mode="after")
    def _noise_says_something(self) -> Self:
        if self.base is None and self.parameterization == "eps" and self.schedule.ends_in_noise:
            raise ValueError(
                "denoiser.parameterization eps is undefined where alpha_bar is 0, as it is at the last level of this "
                "schedule: set it to v, u or x0"
            )
        return self


class ClassifierTrainConfig(TrainConfig):
    """The training loop of the classifier."""

    steps: PositiveInt | Auto = Field(
        1000, description="Optimizer steps; auto: 60 epochs, 500 steps at least, within `minutes`."
    )
    minutes: _Paced[Minutes | None] = Field(
        None, description="Minutes of training that steps: auto may take; default: 3."
    )
    accumulate: PositiveInt = Field(
        1,
        description="Parts in which a worker computes its share of a batch, one by one. A caption competes with those "
        "of its part only, so another number trains another classifier.",
    )


class ClassifierConfig(Section):
    """The noisy-image classifier: it judges x_t, so it shares the denoiser's schedule."""

    network: NetworkConfig = NetworkConfig()
    train: ClassifierTrainConfig = ClassifierTrainConfig()


if TYPE_CHECKING:
    _GuidanceBase = Section
    _SweepBase = Section
    _Scales = tuple[float, ...]
else:
    _GuidanceBase, _SweepBase = guidance_fields(Section, "GuidanceFields"), sweep_fields(Section, "SweepFields")
    _Scales = scales_type(KINDS[DEFAULT_GUIDANCE.name])


class GuidanceSettings(_GuidanceBase):
    """The settings of guidance, one field for each row of `workflows.options.guidance.SETTINGS`."""

    @property
    def guidance_settings(self) -> dict[str, SettingValue]:
        """The settings that are given, by name."""
        found = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in found.items() if value is not None}

    def keyed(self) -> dict[str, Any]:
        """As `Section.keyed`; a setting that is not given is no part of it, so that a new row keeps the old keys."""
        values = super().keyed()
        return {name: value for name, value in values.items() if name not in SETTINGS or value is not None}


class EvaluateConfig(GuidanceSettings):
    """The pictures of an evaluation. They and later requests are drawn with its settings of guidance by default."""

    num_prompts: PositiveInt = Field(500, description="Pictures for the headline accuracy.")
    num_steps: PositiveInt = Field(50, description="DDIM steps.")
    gradient_eta: Fraction = Field(1.0, description="Eta of both: fresh noise covers what a gradient spoils.")
    scales: _Scales = Field((0.0, 1.0, 2.0), description="Scales at which accuracy and diversity are compared.")
    num_prompts_per_scale: PositiveInt = Field(200, description="Pictures per compared scale.")
    num_prompts_per_gradient: PositiveInt = Field(
        100, description="Pictures per kind of classifier and CLIP guidance (first ones of the compared)."
    )
    batch_size: Unkeyed[PositiveInt] = Field(
        32, description="Pictures that a task samples at once. Does not change them."
    )
    workers: Unkeyed[int] = Field(0, ge=0, description="Tasks that sample at once; 0: all CPUs. Does not change them.")
    compare_rows: PositiveInt = Field(
        20_000, description="Training pictures at most among which copies are looked for; they are read in pages."
    )
    bits_rows: Unkeyed[PositiveInt] = Field(
        64, description="Held-out pictures for bits per dimension (`--model` only)."
    )
    bits_levels: Unkeyed[PositiveInt] = Field(100, description="Levels of that bound (`--model` only).")
    seed: int = Field(0, description="Seed of prompts and pictures.")

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        headline = DEFAULT_GUIDANCE.over(self.guidance_settings)
        for scale in self.scales:
            try:
                headline.at(scale)
            except InvalidRequest as error:
                raise InvalidRequest(f"scales: {error.reason}", "scales") from None
        return self


class SweepConfig(_SweepBase):
    """What `raverse sweep` measures; every point draws the same prompts and seeds."""

    num_pictures: PositiveInt = Field(200, description="Pictures per point.")
    steps: tuple[PositiveInt, ...] = Field((5, 10, 20, 50, 100), description="Steps of the table steps x eta.")
    etas: tuple[Fraction, ...] = Field((0.0, 0.2, 0.5, 1.0), description="Etas of that table.")
    gradient_eta: Fraction = Field(1.0, description="Eta of classifier and CLIP guidance.")

    def scales(self, kind: GuidanceKind) -> tuple[float, ...]:
        """The scales that are measured of a kind of guidance."""
        found: tuple[float, ...] = getattr(self, f"{kind.scale}s")
        return found

    samplers: tuple[SamplerName, ...] = Field(tuple(SAMPLERS), description="Samplers of the table of spacings.")
    spacings: tuple[SpacingName, ...] = Field(SPACINGS, description="Spacings of that table.")
    schedules: tuple[ScheduleName, ...] = Field(
        (), description="Noise schedules to compare; each trains a model of its own."
    )
    num_steps: PositiveInt = Field(20, description="Steps of the tables of guidance, spacings and schedules.")
    seed: int = Field(2, description="Seed of prompts and pictures.")


class GateConfig(Section):
    """What a new version must show before it takes the alias: the same prompts and seeds as the present holder."""

    enabled: bool = Field(True, description="Compare before the alias moves; the first version always gets it.")
    require: Literal["not_worse", "better"] = Field(
        "not_worse", description="not_worse: no figure may be worse; better: and one must be better."
    )
    num_prompts: PositiveInt = Field(300, description="Pictures that each of the two versions draws.")
    guidance: GuidanceText = Field("direct", description="Guidance with which both draw, at their own scales.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Of the bootstrap intervals.")
    resamples: PositiveInt = Field(500, description="Bootstrap resamples.")
    max_accuracy_drop: float = Field(0.05, ge=0, description="Drop of accuracy that must be ruled out.")
    max_retrieval_drop: float = Field(
        0.05, ge=0, description="Drop of the share of prompts that are found among captions, that must be ruled out."
    )
    max_clip_score_drop: float = Field(2.0, ge=0, description="Drop of the CLIP score that must be ruled out.")
    max_clip_fd_rise: float = Field(0.5, ge=0, description="Relative rise of CLIP-FD that must be ruled out.")
    max_energy_rise: float = Field(0.5, ge=0, description="Relative rise of the energy distance (vectors).")
    least_energy_rise: float = Field(0.05, ge=0, description="Rise of the energy distance that is always allowed.")
    max_loss_rise: float = Field(0.05, ge=0, description="Relative rise of the loss on held-out samples.")
    max_copies_rise: float = Field(0.05, ge=0, description="Rise of the share of copied training samples.")
    seed: int = Field(1, description="Seed of prompts, pictures and resamples.")

    def allowed_drop(self, name: str) -> float:
        """The drop of `accuracy` or `retrieval` that must be ruled out."""
        return self.max_accuracy_drop if name == "accuracy" else self.max_retrieval_drop


class RegisterConfig(Section):
    """Where the model version goes."""

    model_name: str = Field(min_length=1, description="Registered model's name.")
    alias: str = Field("champion", description="Alias that the new version gets if it passes the gate.")
    gate: Unkeyed[GateConfig] = GateConfig()


class ServeConfig(Section):
    """The Ray Serve application."""

    host: str = Field("127.0.0.1", description="Address of the HTTP proxy.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the HTTP proxy.")
    max_rows: PositiveInt = Field(32, description="Pictures that one replica denoises at once.")
    max_steps: PositiveInt = Field(1000, description="Largest num_inference_steps of a request.")
    num_steps: PositiveInt = Field(50, description="Default num_inference_steps.")
    min_replicas: PositiveInt = Field(1, description="Sampler replicas at least.")
    max_replicas: PositiveInt = Field(1, description="Sampler replicas at most.")
    api_keys_file: FolderPath | None = Field(
        None, description="File of API keys, made with `raverse api-key`; needed unless `host` is loopback."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Names under which clients ask for it, beside those of this machine; *: any."
    )
    cors_origins: tuple[str, ...] = Field((), description="Sites whose pages may ask from a browser.")
    metrics_port: int = Field(9464, ge=1, le=65535, description="Port of the metrics, on a Ray of one's own.")


class StorageConfig(Section):
    """Where artifacts and tracking live."""

    track_training: bool = Field(True, description="Send figures and grids to MLflow while training runs.")

    root: FolderPath = Field(
        "runs",
        validate_default=True,
        description="Folder of artifacts and run folders; relative to where the command runs.",
    )
    tracking_uri: str | None = Field(None, description="MLflow tracking URI; default: SQLite under `root`.")


class RunConfig(Section):
    """The whole job."""

    name: Annotated[str, AfterValidator(_not_reserved)] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the run folder and the experiment."
    )
    data: DataConfig
    clip: ClipConfig = ClipConfig()
    embed: EmbedConfig = EmbedConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sweep: SweepConfig = SweepConfig()
    register_: RegisterConfig = Field(alias="register")
    serve: ServeConfig = ServeConfig()
    storage: StorageConfig = Field(default_factory=StorageConfig)

    @property
    def most_workers(self) -> int:
        """The largest number of workers of any training."""
        return max(section.most_workers for section in (self.clip, self.denoiser.train, self.classifier.train))

    @property
    def root_folder(self) -> Path:
        """Absolute folder of all artifacts, run folders and, by default, the MLflow store."""
        return Path(self.storage.root)

    @property
    def run_folder(self) -> Path:
        """Absolute folder of this job's report, pictures and logs."""
        return self.root_folder / self.name
