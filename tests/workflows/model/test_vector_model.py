"""A package that draws vectors: every kind of guidance, raw numbers, and what refuses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_core.bundle import ModelBundle
from diffusion_core.networks import MLP, MLPConfig, NoisyClassifier, NoisyClassifierConfig
from diffusion_core.schedule import NoiseSchedule
from tests.workflows.conftest import write_tiny_clip
from workflows.data.dataset import DataInfo, Split
from workflows.data.scale import VectorScale
from workflows.errors import InvalidConfig
from workflows.evaluate.sampling import SampleJob, draw
from workflows.evaluate.vectors import ask_rows, draw_samples
from workflows.model.model import ModelPackage
from workflows.options.guidance import Guidance
from workflows.package.files import Defaults, PackageCard, assemble, check_draws_pictures
from workflows.towers.clip import load_clip

SCALE = VectorScale(("a", "b", "c"), (10.0, 0.0, -3.0), (2.0, 1.0, 0.5))
SCALES = {"guidance_scale": 2.0, "classifier_scale": 1.0, "clip_scale": 1.0}
CAPTIONS = ("a red one", "a blue one")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, schedule = tmp_path_factory.mktemp("vectors"), NoiseSchedule.cosine(50)
    clip = write_tiny_clip(folder / "clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp = MLPConfig((3,), width=16, depth=1, token_dim=16, pooled_dim=16)
        weights = {name: torch.randn_like(value) * 0.1 for name, value in MLP(mlp).state_dict().items()}
        judge = NoisyClassifierConfig(
            (3,), width=16, depth=1, num_heads=2, num_classes=2, embed_dim=16, num_candidates=2
        )
        heads = NoisyClassifier(judge).state_dict()
    ModelBundle.save(folder / "d", mlp, weights, schedule=schedule, parameterization="v", clip={"model": "tiny"})
    ModelBundle.save(folder / "c", judge, heads, schedule=schedule, clip={"model": "tiny"})
    card = PackageCard("vectors", (3,), ("red", "blue"), CAPTIONS, "0" * 64, Defaults(num_steps=4), SCALE)
    assemble(folder / "package", card, denoiser=folder / "d", classifier=folder / "c", clip=clip)
    return folder / "package"


def held_out() -> Split:
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    labels = np.arange(6) % 2
    names = tuple((("red", "blue")[label],) for label in labels)
    return Split(np.arange(6), rows, tuple((CAPTIONS[i],) for i in labels), labels, names, np.zeros(6, np.bool_))


def test_the_card_keeps_its_scale(package: Path) -> None:
    assert PackageCard.load(package).scale == SCALE


@pytest.mark.parametrize("kind", ["none", "direct", "classifier_free", "classifier", "clip"])
def test_every_kind_of_guidance_draws_vectors(package: Path, kind: str) -> None:
    prompts = ask_rows(held_out(), 8, seed=1)
    assert prompts.texts[6:] == prompts.texts[:2]
    job = SampleJob(prompts, Guidance.of(kind).over(SCALES), num_steps=4)
    drawn = draw(str(package), job)
    assert (drawn.shape, drawn.dtype) == ((8, 3), np.float32)
    assert np.isfinite(drawn).all()
    assert float(np.abs(drawn).max()) > 1.0, "vectors are not cut off at 1, as pictures are"


def test_clip_sees_a_cell_for_each_number(package: Path) -> None:
    clip = load_clip(package / "clip")
    x = torch.randn(4, 3, requires_grad=True)
    vectors = clip.image.encode(x)
    (gradient,) = torch.autograd.grad(vectors.sum(), x)
    assert vectors.shape[0] == 4
    assert bool((gradient != 0).all())
    changed = x.detach().clone()
    changed[0, 2] += 1.0
    assert not torch.allclose(clip.image.encode(changed)[0], vectors[0])
    assert torch.allclose(clip.image.encode(changed)[1:], vectors[1:], atol=1e-6)


def test_pictures_are_asked_of_models_of_pictures(package: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"mine draws vectors of a, b, c.* and no pictures"):
        check_draws_pictures(ModelPackage.load(package).card, "mine")
    info = DataInfo("vectors", (3,), ("red", "blue"), {"label": ("red", "blue")}, 1, 1, "0", CAPTIONS, (), SCALE)
    info.save(tmp_path)
    assert DataInfo.load(tmp_path) == info


@pytest.mark.parametrize("columns", [1, 2, 6])
def test_samples_are_plotted_whatever_the_number_of_columns(columns: int, tmp_path: Path) -> None:
    scale = VectorScale(tuple("abcdef"[:columns]), (0.0,) * columns, (1.0,) * columns)
    rows = np.random.default_rng(0).normal(size=(20, columns))
    rows[:, 0] = 5.0
    draw_samples(tmp_path / "samples.png", scale, rows, rows)
    assert (tmp_path / "samples.png").stat().st_size > 3000
