"""Latents in the cache and fine-tunes on them, on real digits and trainers in plain processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion_core.bundle import ModelBundle
from diffusion_core.errors import InvalidBundle
from tests.workflows.diffusers_io import pipelines
from tests.workflows.diffusers_io.caches import write_latents
from tests.workflows.diffusers_io.demo import judged, unseen
from tests.workflows.diffusers_io.trained import SUBJECTS, make_base
from tests.workflows.train.ranks import Job, Ranks
from workflows.config.load import load_config
from workflows.config.schema import LoraConfig, TrainConfig
from workflows.data.dataset import SPLITS, Dataset
from workflows.data.stage import build_data
from workflows.diffusers_io.exporting import export_diffusers, export_kohya, export_lora
from workflows.diffusers_io.importing import import_pipeline
from workflows.embed.cache import EmbeddingCache
from workflows.embed.plan import plan_shards
from workflows.errors import InvalidConfig
from workflows.evaluate.metrics.judge import train_judge
from workflows.evaluate.sampling import SampleJob, draw
from workflows.model.model import ModelPackage
from workflows.options.guidance import Guidance
from workflows.package.base import Base, base_of
from workflows.package.files import AUTOENCODER, CLIP, PIPELINE, assemble
from workflows.package.lora import Adapter, Lora, adapter_parameters, for_kohya
from workflows.runtime.progress import Progress
from workflows.towers.autoencoder import Autoencoder
from workflows.towers.identity import ClipIdentity
from workflows.train.batches import BatchReader, Share
from workflows.train.finetune import Start, save_tuned
from workflows.train.flop import flop_per_sample
from workflows.train.loop.fit import read_weights
from workflows.train.networks import classifier_network
from workflows.train.objectives import ClassifierObjective, DenoiserObjective
from workflows.train.plan import Plan
from workflows.train.stage import denoiser_objective

LORA = LoraConfig(rank=2, alpha=4.0)
TRAIN = TrainConfig(
    steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=1, sharding="fsdp", checkpoint_every=2, log_every=1
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """An imported pipeline that draws gray pictures of 8 x 8."""
    root = tmp_path_factory.mktemp("base")
    pipelines.stable_diffusion(root / "source", {}, side=4, channels=1)
    import_pipeline(root / "source", root / "package")
    config = load_config("digits", [f"denoiser.base={root / 'package'}", f"storage.root={root}"])
    found = base_of(config)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A tenth of the digits to train on."""
    folder = tmp_path_factory.mktemp("digits")
    build_data(load_config("digits", ["data.held_out=0.9"]), {}, folder, Progress.silent())
    return Dataset.open(folder)


@pytest.fixture(scope="session")
def latents(base: Base, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    """Their cache, with mirrored pictures."""
    return write_latents(base, digits, tmp_path_factory.mktemp("latents"), flips=True)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Processes for trainers."""
    pool = Ranks()
    yield pool
    pool.close()


def objective(base: Base, cache: EmbeddingCache, lora: LoraConfig) -> DenoiserObjective:
    section = load_config("digits", []).denoiser.model_copy(update={"lora": lora})
    return denoiser_objective(section, cache, base)


def test_the_cache_holds_what_the_autoencoder_says(base: Base, digits: Dataset, latents: EmbeddingCache) -> None:
    assert base.autoencoder is not None
    autoencoder, images = Autoencoder.load(base.autoencoder), torch.from_numpy(digits.read("train").images[:5])
    stored = latents.images("train", range(5))
    assert latents.shape == (4, 4, 4)
    wanted = torch.cat([*autoencoder.encode(images), *autoencoder.encode(images.flip(-1))], dim=1)
    assert float((stored - wanted).abs().max()) < 1e-5
    assert float((stored[:, :4] - stored[:, 8:12]).abs().max()) > 1e-2, "a mirrored digit is another picture"
    for split in SPLITS:
        assert len(latents.images(split, range(latents.num_samples(split)))) == latents.num_samples(split)
    latents.verify()


def test_training_draws_from_the_posterior(latents: EmbeddingCache) -> None:
    """The draw depends on the row's number alone, and both pictures come up."""
    form = latents.latents
    assert form is not None
    stored, numbers = latents.images("train", [3] * 4000), torch.arange(4000)
    drawn = form.draw(stored, 0, numbers)
    assert torch.equal(form.draw(stored[7:9], 0, numbers[7:9]), drawn[7:9])
    assert not torch.equal(form.draw(stored[7:9], 1, numbers[7:9]), drawn[7:9])
    mean, deviation, mirrored, _ = stored[0].unflatten(0, (4, -1)).unbind(0)
    nearer = (drawn - mean).flatten(1).norm(dim=1) < (drawn - mirrored).flatten(1).norm(dim=1)
    assert 0.45 < float(nearer.float().mean()) < 0.55
    spread = drawn[nearer].std(dim=0)
    assert float((spread / deviation - 1).abs().max()) < 0.15
    assert torch.equal(latents.to_x0(stored[:1])[0], mean)


def test_another_autoencoder_or_flips_are_another_cache(base: Base, digits: Dataset, latents: EmbeddingCache) -> None:
    section, identity = load_config("digits", []).embed, ClipIdentity.load(base.text_folder)
    plain = base.latents(flips=False)
    assert plain is not None
    other = replace(plain, autoencoder="another")
    keys = {plan_shards(digits, identity, section, form).key for form in (plain, other, None)} | {latents.key}
    assert len(keys) == 4


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LORA, LoraConfig()], ids=["lora", "full"])
def test_sharded_resumed_and_checkpointed_runs_agree(
    ranks: Ranks, base: Base, latents: EmbeddingCache, tmp_path: Path, lora: LoraConfig
) -> None:
    job = Job(objective(base, latents, lora), TRAIN, latents.folder, TRAIN.steps)
    whole = ranks.run(1, job)[0]
    assert whole.error is None
    torch.manual_seed(TRAIN.seed)
    before = dict(job.objective.build().state_dict())
    moved = {name for name, value in whole.weights.items() if not torch.equal(before[name], value)}
    trained = set(whole.ema)
    assert moved == trained, "what is trained changes, and nothing else does"
    if lora.rank:
        assert all(".lora_" in name for name in trained)
    sharded = ranks.run(2, job)[0]
    assert apart(sharded, whole) < 1e-4
    replicated = ranks.run(2, replace(job, config=TRAIN.model_copy(update={"sharding": "ddp"})))[0]
    assert apart(replicated, whole) < 1e-4
    half = ranks.run(2, replace(job, steps=2, save=tmp_path / "half"))[0]
    weights, ema = read_weights(job.objective, tmp_path / "half")
    assert set(weights) == set(ema) == trained, "a checkpoint holds what is trained"
    assert all(torch.equal(ema[name], half.ema[name]) for name in trained)
    assert all(torch.equal(weights[name], half.weights[name]) for name in trained)
    resumed = ranks.run(2, replace(job, steps=2, load=tmp_path / "half"))[0]
    assert all(torch.equal(resumed.ema[name], value) for name, value in sharded.ema.items()), "exact resume"
    assert resumed.samples_seen == sharded.samples_seen
    elsewhere = replace(job, config=TRAIN.model_copy(update={"sharding": "ddp"}), steps=2, load=tmp_path / "half")
    assert apart(ranks.run(1, elsewhere)[0], sharded) < 1e-4, "it goes on with other workers and another sharding"
    forgotten = ranks.run(2, replace(job, steps=2, load=tmp_path / "half", forget="optimizer"))[0]
    assert apart(forgotten, sharded) > 1e-6, "the comparison can fail"
    again = replace(job, config=TRAIN.model_copy(update={"activation_checkpointing": True}))
    assert apart(ranks.run(1, again)[0], whole) < 1e-6, "blocks that are computed again say the same"


def apart(one: object, other: object) -> float:
    first, second = one.ema, other.ema  # type: ignore[attr-defined]
    return max(float((first[name] - second[name]).abs().max()) for name in second)


@pytest.fixture(scope="session")
def tuned(base: Base, latents: EmbeddingCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package beside the base's weights, with matrices of random values."""
    root = tmp_path_factory.mktemp("tuned")
    start = Start.of(base, LORA)
    network = start.network()
    weights = {name: torch.randn_like(value) * 0.1 for name, value in adapter_parameters(network)}
    save_tuned(root, base, start, weights, weights)
    return packaged(base, root)


def packaged(base: Base, folder: Path) -> Path:
    """The package of a tuned stage's folder."""
    assert base.autoencoder is not None
    more = {AUTOENCODER: base.autoencoder, PIPELINE: base.folder / PIPELINE, "adapter": folder / "adapter"}
    card = replace(base.card, parts={})
    parts = {"denoiser": folder / "bundle", "classifier": None, "clip": base.text_folder}
    assemble(folder / "package", card, **parts, more=more, link=True)  # type: ignore[arg-type]
    return folder / "package"


def drawn(package: ModelPackage) -> Tensor:
    condition = package.condition(["a handwritten seven", "a dog"], "classifier_free", guidance_scale=3.0)
    return package.sample(condition, seeds=[1, 2], plan=package.plan("ddim", 5))


def test_versions_of_a_base_hold_its_weights_together(base: Base, tuned: Path) -> None:
    one, two, plain = ModelPackage.load(tuned), ModelPackage.load(tuned), ModelPackage.load(base.folder)
    assert one.card.parts["denoiser"] == base.card.parts["denoiser"], "the base is untouched"
    for version in (two, plain):
        assert addresses(version) & addresses(one) == addresses(plain)
    assert len(addresses(one) - addresses(plain)) == len(Adapter.load(tuned / "adapter").weights)
    assert torch.equal(drawn(one), drawn(two))
    assert float((drawn(one) - drawn(plain)).abs().max()) > 1e-2
    alone = ModelBundle.load(base.folder / "denoiser").denoiser()
    assert not {value.data_ptr() for value in alone.network.parameters()} & addresses(one)  # type: ignore[attr-defined]


def addresses(package: ModelPackage) -> set[int]:
    denoiser = package.denoiser
    while hasattr(denoiser, "denoiser"):
        denoiser = denoiser.denoiser
    return {value.data_ptr() for value in denoiser.network.parameters()}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_an_exported_version_draws_the_same_in_diffusers(base: Base, tuned: Path, tmp_path: Path) -> None:
    """Merged into the pipeline, and as matrices that diffusers loads beside the base."""
    from diffusers import StableDiffusionPipeline

    package = ModelPackage.load(tuned)
    export_diffusers(tuned, tmp_path / "merged")
    export_diffusers(base.folder, tmp_path / "base")
    file = export_lora(tuned, tmp_path / "lora")
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    beside = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    x = torch.randn(2, *package.shape, generator=torch.Generator().manual_seed(3))
    prompts = ["a handwritten seven", "a dog"]
    condition = package.condition(prompts, "classifier_free", guidance_scale=3.0)
    found = package.sample(condition, seeds=[0, 1], plan=package.plan("ddim", 5), start=x)

    def of(pipe: StableDiffusionPipeline) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        images: Tensor = pipe(
            prompts, num_inference_steps=5, guidance_scale=3.0, latents=x, output_type="latent"
        ).images
        return images

    untuned = of(beside)
    kohya = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    beside.load_lora_weights(tmp_path / "lora", weight_name=file.name)
    kohya.load_lora_weights(tmp_path / "kohya", weight_name=export_kohya(tuned, tmp_path / "kohya").name)
    for pipe in (merged, beside, kohya):
        assert float((of(pipe) - found).norm() / found.norm()) < 1e-4
    assert float((untuned - found).norm() / found.norm()) > 1e-2


def test_kohyas_names_are_those_that_comfyui_and_a1111_read(tuned: Path) -> None:
    """`lora_unet_` and the layer's name in diffusers, `_` for each dot; down, up and alpha of each layer."""
    adapter = Adapter.load(tuned / "adapter")
    found = for_kohya(adapter)
    block = r"(?:(?:down|up)_blocks_\d+|mid_block)_attentions_\d+"
    layer = rf"lora_unet_{block}_transformer_blocks_\d+_attn[12]_to_(?:q|k|v|out_0)"
    assert {
        name for name in found if not re.fullmatch(rf"{layer}\.(?:lora_down\.weight|lora_up\.weight|alpha)", name)
    } == set()
    layers = {name.partition(".")[0] for name in found}
    assert len(found) == 3 * len(layers) > 0
    for name in layers:
        down, up = found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"]
        assert down.shape[0] == up.shape[1] == adapter.lora.rank
        assert float(found[f"{name}.alpha"]) == adapter.lora.alpha


def test_an_adapter_of_another_base_is_refused(base: Base, tuned: Path) -> None:
    adapter = Adapter.load(tuned / "adapter")
    with pytest.raises(InvalidBundle, match="belongs to base"):
        adapter.apply(base.bundle.network(), "another")
    with pytest.raises(InvalidBundle, match="does not fit"):
        replace(adapter, lora=Lora(2, 4.0, ("to_q",))).apply(base.bundle.network(), base.bundle.hash)
    with pytest.raises(InvalidConfig, match="fit no layer"):
        Lora(2, 4.0, ("no_such_layer",)).insert(base.bundle.network())
    with pytest.raises(InvalidConfig, match="is a LoRA version"):
        base_of(load_config("digits", [f"denoiser.base={tuned}"]))
    with pytest.raises(InvalidConfig, match=r"set denoiser\.base"):
        load_config("digits", ["denoiser.lora.rank=4"])


def test_batches_of_latents_reach_the_trainer(base: Base, latents: EmbeddingCache) -> None:
    reader = BatchReader(latents, base.bundle.schedule.num_levels, 0, torch.device("cpu"))
    batch = reader.read(Plan(0, latents.num_samples("train"), 8, 0.1).batch(0), Share())
    assert batch.x0.shape == (8, 4, 4, 4)
    assert batch.condition.tokens is not None
    assert batch.condition.tokens.shape[1:] == (77, 32)
    text = load_file(base.folder / CLIP / "text_encoder" / "model.safetensors")
    assert text
    losses = objective(base, latents, LORA).losses(objective(base, latents, LORA).build(), batch)
    assert bool(torch.isfinite(losses.loss).all())


def test_a_classifier_on_latents_steers(base: Base, latents: EmbeddingCache, digits: Dataset, tmp_path: Path) -> None:
    """It learns from the same batches, and its gradient moves the latents that are drawn."""
    section, names = load_config("digits", []).classifier.network, digits.info.class_names
    candidates = latents.captions.pooled(latents.caption_positions(digits.info.candidate_captions))
    config = classifier_network(section, latents, len(names), len(candidates))
    learns = ClassifierObjective(config, base.bundle.schedule, candidates)
    reader = BatchReader(latents, base.bundle.schedule.num_levels, 0, torch.device("cpu"))
    torch.manual_seed(0)
    network = learns.build()
    losses = learns.losses(network, reader.read(Plan(0, latents.num_samples("train"), 8).batch(0), Share()))
    assert bool(torch.isfinite(losses.loss).all())
    weights = {name: torch.randn_like(value) * 0.3 for name, value in network.state_dict().items()}
    schedule, clip = base.bundle.schedule, base.bundle.clip
    ModelBundle.save(tmp_path / "classifier", config, weights, schedule=schedule, clip=clip)
    assert base.autoencoder is not None
    assemble(
        tmp_path / "package",
        replace(base.card, parts={}, class_names=names),
        denoiser=base.folder / "denoiser",
        classifier=tmp_path / "classifier",
        clip=base.text_folder,
        more={AUTOENCODER: base.autoencoder, PIPELINE: base.folder / PIPELINE},
    )
    package = ModelPackage.load(tmp_path / "package")
    assert package.guidance == ("none", "direct", "classifier_free", "classifier")
    plan = package.plan("ddim", 4)
    steered, plain = (
        package.sample(package.condition(1, "classifier", labels=[3], classifier_scale=scale), seeds=[1], plan=plan)
        for scale in (5.0, 0.0)
    )
    assert float((steered - plain).abs().max()) > 1e-3


def test_work_is_counted_for_a_network_from_outside(base: Base) -> None:
    """On the meta device, as the workers do."""
    assert flop_per_sample(base.bundle.config, 77) > 1e6


@pytest.mark.slow
def test_lora_learns_what_the_base_never_saw(
    ranks: Ranks, digits: Dataset, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The judge sees new digits more often than of the base, whose weights are the same file."""
    subject = SUBJECTS["digits"]
    made = Path(os.environ.get("RAVERSE_DEMO_BASE") or make_base(tmp_path / "base", subject))
    import_pipeline(made, tmp_path / "package")
    data = tmp_path_factory.mktemp("all-digits")
    build_data(load_config("digits", []), {}, data, Progress.silent())
    dataset, base = Dataset.open(data), base_of(load_config("digits", [f"denoiser.base={tmp_path / 'package'}"]))
    assert base is not None
    cache = write_latents(base, dataset, tmp_path / "cache", flips=False)
    lora = LoraConfig(rank=8, alpha=8.0)
    train = TRAIN.model_copy(update={"steps": 300, "batch_size": 32, "learning_rate": 3e-3, "ema_decay": 0.99})
    job = Job(objective(base, cache, lora), train, cache.folder, train.steps)
    ended = ranks.run(1, job, timeout=900)[0]
    start = Start.of(base, lora)
    save_tuned(tmp_path / "tuned", base, start, ended.weights, ended.ema)
    tuned = packaged(base, tmp_path / "tuned")
    assert ModelBundle.load(tuned / "denoiser").hash == base.bundle.hash
    prompts, judge = unseen(dataset, subject), train_judge(dataset, 0)
    asked = SampleJob(prompts, Guidance.of("classifier_free", guidance_scale=3.0), num_steps=10)
    before, after = (judged(asked, draw(str(folder), asked), judge).accuracy for folder in (base.folder, tuned))
    print(f"the judge's accuracy on digits that the base never saw: base {before:.3f}, tuned {after:.3f}")
    assert after > before + 0.2
