"""Pictures of an imported checkpoint are those of diffusers, given the same initial latents."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from diffusion_core.engine import StepEngine
from diffusion_core.row import Trajectory
from tests.workflows.diffusers_io.conftest import SCHEDULES, Pair
from workflows.diffusers_io.scheduler import read_scheduler
from workflows.towers.pipeline_text import load_text

PROMPTS = ["a red circle", "Ünïcode — a DOG, running!"]
NEGATIVE = ["ugly", "a blue square"]
PEERS = {"ddim": DDIMScheduler, "dpm_solver": DPMSolverMultistepScheduler}
FAST = ("leading-offset", "zero-v")
MakePair = Callable[[str], Pair]


def start(pair: Pair, rows: int = 2) -> Tensor:
    return torch.randn(rows, *pair.package.shape, generator=torch.Generator().manual_seed(3))


def of_diffusers(pair: Pair, sampler: str, steps: int, output_type: str = "latent", **asked: Any) -> Any:
    """What the pipeline draws with another scheduler of the same configuration."""
    own = pair.pipe.scheduler
    pair.pipe.scheduler = PEERS[sampler].from_config(own.config)
    try:
        with torch.no_grad():
            return pair.pipe(
                PROMPTS, num_inference_steps=steps, latents=start(pair), output_type=output_type, **asked
            ).images
    finally:
        pair.pipe.scheduler = own


def of_package(pair: Pair, sampler: str, steps: int, scale: float, negative: list[str] | None = None) -> Tensor:
    condition = pair.package.condition(PROMPTS, "classifier_free", negative_prompts=negative, guidance_scale=scale)
    plan = pair.package.plan(sampler, steps)
    return pair.package.sample(condition, seeds=[0, 1], plan=plan, start=start(pair))


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "schedule", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULES]
)
@pytest.mark.parametrize("sampler", PEERS)
@pytest.mark.parametrize("steps", [7, pytest.param(20, marks=pytest.mark.slow)])
def test_latents(pair: MakePair, schedule: str, sampler: str, steps: int) -> None:
    """7 does not divide 1000, and makes the last step of DPM-Solver++ first order by another rule than 20."""
    one = pair(f"sd {schedule}")
    for scale, negative in ((1.0, None), (5.0, None), (5.0, NEGATIVE)):
        wanted = of_diffusers(one, sampler, steps, guidance_scale=scale, negative_prompt=negative)
        found = of_package(one, sampler, steps, scale, negative)
        assert apart(found, wanted) < 1e-4, (scale, negative)


@pytest.mark.parametrize("sampler", PEERS)
def test_pictures(pair: MakePair, sampler: str) -> None:
    one = pair("sd leading-offset")
    wanted = of_diffusers(one, sampler, 10, "np", guidance_scale=5.0)
    found = one.package.drawn(of_package(one, sampler, 10, 5.0)).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(int) - (wanted * 255).round().astype(int)).max() <= 1
    assert wanted.std() > 0.1, "a flat picture would prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [5, 16])
def test_the_end_of_dpm_solver(pair: MakePair, final: str, steps: int) -> None:
    one = pair("sd leading-offset")
    from workflows.diffusers_io.scheduler import read_scheduler

    values = dict(one.pipe.scheduler.config) | {"final_sigmas_type": final}
    read = read_scheduler(values, latent=True)
    peer = DPMSolverMultistepScheduler.from_config(values)
    own, one.pipe.scheduler = one.pipe.scheduler, peer
    try:
        with torch.no_grad():
            wanted = one.pipe(PROMPTS, num_inference_steps=steps, latents=start(one), output_type="latent").images
    finally:
        one.pipe.scheduler = own
    condition = one.package.condition(PROMPTS, "classifier_free", guidance_scale=7.5)
    plan = read.sampling.plan(read.schedule, "dpm_solver", steps)
    found = one.package.sample(condition, seeds=[0, 1], plan=plan, start=start(one))
    assert apart(found, wanted) < 1e-4


def test_another_convention_is_another_picture(pair: MakePair) -> None:
    """Negative control: each convention matters by more than the tolerance."""
    one = pair("sd leading-offset")
    wanted = of_diffusers(one, "ddim", 7, guidance_scale=5.0)
    condition = one.package.condition(PROMPTS, "classifier_free", guidance_scale=5.0)
    for plan in (one.package.plan("ddim", 7, spacing="trailing"), one.package.plan("dpm_solver", 7)):
        assert apart(one.package.sample(condition, seeds=[0, 1], plan=plan, start=start(one)), wanted) > 1e-2


def test_mixed_rows_of_the_engine(pair: MakePair) -> None:
    """Rows of different samplers, steps, scales and negative prompts in one batch: each as if it were alone."""
    one = pair("sd leading-offset")
    package, x = one.package, start(one)
    asked = [("ddim", 7, 5.0, NEGATIVE), ("dpm_solver", 20, 5.0, None), ("ddim", 20, 1.0, None)]
    engine, wanted = StepEngine(package.denoiser, package.shape, max_rows=8), {}
    for sampler, steps, scale, negative in asked:
        drawn = of_diffusers(one, sampler, steps, guidance_scale=scale, negative_prompt=negative)
        condition = package.condition(PROMPTS, "classifier_free", negative_prompts=negative, guidance_scale=scale)
        for row in range(2):
            part = condition.rows(slice(row, row + 1))
            name = engine.submit(Trajectory.start_at(package.plan(sampler, steps), part, x[row], seed=row))
            wanted[name] = drawn[row]
    while len(engine):
        for outcome in engine.tick():
            assert outcome.x0 is not None
            assert apart(outcome.x0, wanted.pop(outcome.row_id)) < 1e-4
    assert not wanted
    engine.check()


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_pixels_without_text(pair: MakePair, name: str) -> None:
    one = pair(name)
    package, x = one.package, start(pair(name))
    assert package.guidance == ("none",)
    scheduler = DDIMScheduler.from_config(one.pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(12)
    wanted = x
    with torch.no_grad():
        for time in scheduler.timesteps:
            wanted = scheduler.step(one.pipe.unet(wanted, time).sample, time, wanted).prev_sample
    unclipped = package.condition(2, "none").with_settings(clip_x0=0.0)
    found = package.sample(unclipped, seeds=[0, 1], plan=package.plan("ddim", 12), start=x)
    assert apart(found, wanted) < 1e-4


def test_the_mean_of_ddpm(pair: MakePair) -> None:
    """One ancestral step with x0 clipped: its mean is diffusers' own."""
    one = pair("ddpm")
    package, scheduler = one.package, DDPMScheduler.from_config(one.pipe.scheduler.config)
    scheduler.set_timesteps(20)
    x, time = start(one), scheduler.timesteps[0]
    plan = package.plan("ddpm", 20)
    with torch.no_grad():
        output = one.pipe.unet(x, time).sample
        after = [
            scheduler.step(output, time, x, generator=torch.Generator().manual_seed(s)).prev_sample for s in (1, 2)
        ]
        noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
        prediction = package.denoiser(x, torch.full((2,), plan.levels[0]), package.condition(2, "none"))
    deviation = float(plan.D[0])
    mean = plan.A[0] * prediction.x0 + plan.B[0] * prediction.eps
    for wanted, z in zip(after, noise, strict=True):
        assert apart((mean + deviation * z).float(), wanted) < 1e-4


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_labels(pair: MakePair, scale: float) -> None:
    one = pair("dit")
    package, labels = one.package, [1, 7]
    assert package.class_names[1] == "goldfish"
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        wanted = one.pipe(labels, guidance_scale=scale, generator=generator, num_inference_steps=10, output_type="np")
    x = torch.randn(2, *package.shape, generator=torch.Generator().manual_seed(5))
    condition = package.condition(2, "classifier_free", labels=labels, guidance_scale=scale)
    found = package.drawn(package.sample(condition, seeds=[0, 1], plan=package.plan("ddim", 10), start=x))
    drawn = (np.asarray(wanted.images) * 255).round().astype(int)
    assert np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - drawn).max() <= 1


def test_text_tokens(pair: MakePair) -> None:
    for name in ("sd leading-offset", "sd zero-v"):
        one = pair(name)
        texts = [*PROMPTS, "", "word " * 200, "naïve café &amp; ﬁne"]
        ids = one.pipe.tokenizer(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            wanted = one.pipe.text_encoder(ids)[0]
        found = one.package.clip.text.encode(texts)
        assert float((found.tokens - wanted).abs().max()) < 1e-5
        assert bool(found.mask.all())


@pytest.mark.parametrize("sampler", PEERS)
def test_trailing_times_of_every_number_of_steps(sampler: str) -> None:
    values = {"timestep_spacing": "trailing", "num_train_timesteps": 1000}
    sampling = read_scheduler(values, latent=True)
    reference, cut = PEERS[sampler](**values), 0
    for count in range(1, 1001):
        reference.set_timesteps(count)
        wanted = [int(time) for time in reference.timesteps]
        cut += len(wanted) > count
        plan = sampling.sampling.plan(sampling.schedule, sampler, count)
        assert [level - 1 for level in plan.levels[:-1]] == wanted[:count], count
    assert cut > 0, "diffusers visits a time too many for some, -1"


def test_a_learned_word_of_several_vectors(pair: MakePair, tmp_path: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = shutil.copytree(pair("sd leading-offset").package.folder / "clip", tmp_path / "clip")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2", "<dog>"])
    encoder.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder")
    pipe = pair("sd leading-offset").pipe
    text = load_text(folder)
    for prompt in ("a photo of <cat-toy> and <dog>", "<cat-toy>_1 alone", "nothing learned"):
        expanded = pipe.maybe_convert_prompt(prompt, tokenizer)
        wanted = tokenizer(
            [expanded], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        assert torch.equal(text.tokenize([prompt]), wanted), prompt
    assert expanded == "nothing learned"
    assert pipe.maybe_convert_prompt("<cat-toy>", tokenizer) == "<cat-toy> <cat-toy>_1 <cat-toy>_2", "negative control"


def test_the_length_is_the_tokenizers(pair: MakePair, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    shutil.copytree(pair("sd leading-offset").package.folder / "clip", tmp_path / "clip")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "clip" / "tokenizer")
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(tmp_path / "clip" / "tokenizer")
    ids = tokenizer(["word " * 50], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = pair("sd leading-offset").pipe.text_encoder(ids)[0]
    assert wanted.shape[1] == 20
    torch.testing.assert_close(load_text(tmp_path / "clip").encode(["word " * 50]).tokens, wanted, rtol=0, atol=1e-5)
