"""A loaded package: every kind of guidance does what its formula says, and rows do not disturb each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_core.condition import Condition
from diffusion_core.denoiser import check_settings
from workflows.data.rows import Pictures
from workflows.errors import InvalidRequest
from workflows.model.model import ModelPackage

PROMPTS = ["a handwritten seven", "the digit two", "a handwritten one"]


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> ModelPackage:
    return ModelPackage.load(tiny_package)


def noisy(package: ModelPackage, num_rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num_rows, *package.shape, generator=generator), torch.full((num_rows,), 60)


def unclipped(condition: Condition) -> Condition:
    """Thresholding off, so that the formulas of guidance can be read off."""
    return condition.with_settings(clip_x0=0.0)


def test_what_it_says_of_itself(package: ModelPackage, tiny_package: Path) -> None:
    assert package.shape == (1, 8, 8)
    assert package.class_names[7] == "seven"
    assert package.schedule.num_levels == 100
    assert package.hash == ModelPackage.load(tiny_package).hash
    assert {"guidance_scale", "classifier_scale", "clip_scale", "clip_x0"} <= set(package.denoiser.settings)


def test_classifier_free_scale_is_linear_between_null_and_direct(package: ModelPackage) -> None:
    x, level = noisy(package)
    null = package.denoiser(x, level, unclipped(package.condition(3, "none"))).x0
    direct = package.denoiser(x, level, unclipped(package.condition(PROMPTS, "direct"))).x0
    guided = package.denoiser(x, level, unclipped(package.condition(PROMPTS, guidance_scale=2.5))).x0
    assert not torch.allclose(null, direct, atol=1e-3)
    torch.testing.assert_close(guided, null + 2.5 * (direct - null), atol=1e-5, rtol=1e-5)


def test_a_negative_prompt_takes_the_place_of_null(package: ModelPackage) -> None:
    x, level = noisy(package)
    negative = ["the number 3"] * 3
    one, other = (package.denoiser(x, level, unclipped(package.condition(p, "direct"))).x0 for p in (PROMPTS, negative))
    asked = package.condition(PROMPTS, negative_prompts=negative, guidance_scale=3.0)
    guided = package.denoiser(x, level, unclipped(asked)).x0
    torch.testing.assert_close(guided, other + 3.0 * (one - other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by_label", [True, False])
def test_classifier_guidance_adds_its_gradient_to_the_unconditional_model(
    package: ModelPackage, by_label: bool
) -> None:
    x, level = noisy(package)
    labels = [7, 2, 1]
    asked = package.condition(
        3 if by_label else PROMPTS, "classifier", labels=labels if by_label else None, classifier_scale=4.0
    )
    guided = package.denoiser(x, level, unclipped(asked))
    null = package.denoiser(x, level, unclipped(package.condition(3, "none")))
    leaf = x.clone().requires_grad_()
    classifier = package.classifier
    if by_label:
        logits = classifier(leaf, level.float()).logits
        density = logits.log_softmax(dim=1)[torch.arange(3), torch.tensor(labels)]
    else:
        seen = classifier(leaf, level.float())
        density = seen.logit_scale * (seen.embedding * package.clip.text.encode(PROMPTS).pooled).sum(dim=1)
    score = torch.autograd.grad(density.sum(), leaf)[0]
    sigma = (1.0 - package.schedule.at(level)).sqrt().float()[:, None, None, None]
    torch.testing.assert_close(guided.eps, null.eps - 4.0 * sigma * score, atol=1e-4, rtol=1e-4)
    assert float((guided.eps - null.eps).abs().max()) > 1e-3


def test_clip_guidance_follows_the_gradient_through_x0(package: ModelPackage) -> None:
    x, level = noisy(package)
    guided = package.denoiser(x, level, unclipped(package.condition(PROMPTS, "clip", clip_scale=2.0)))
    null_condition = unclipped(package.condition(3, "none"))
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        null = package.denoiser(leaf, level, null_condition)
        own = package.clip.text.encode(PROMPTS).pooled
        candidates = package.clip.text.encode(package.card.candidate_captions).pooled
        seen = package.clip.image.encode(null.x0)
        scale = package.clip.logit_scale
        own_logit = scale * (seen * own).sum(dim=1)
        listed = torch.tensor([prompt in package.card.candidate_captions for prompt in PROMPTS])
        extra = own_logit.masked_fill(listed, -torch.inf)[:, None]
        density = own_logit - torch.cat([scale * seen @ candidates.T, extra], dim=1).logsumexp(dim=1)
        score = torch.autograd.grad(density.sum(), leaf)[0]
    sigma = (1.0 - package.schedule.at(level)).sqrt().float()[:, None, None, None]
    torch.testing.assert_close(guided.eps, null.eps.detach() - 2.0 * sigma * score, atol=1e-4, rtol=1e-3)
    assert float((guided.eps - null.eps.detach()).abs().max()) > 1e-3


def test_pictures_do_not_depend_on_their_neighbours(package: ModelPackage) -> None:
    asked = [
        package.condition(1, "none"),
        package.condition(PROMPTS[:1], "classifier_free", guidance_scale=3.0),
        package.condition(1, "classifier", labels=[4]),
        package.condition(PROMPTS[1:2], "clip"),
        package.condition(PROMPTS[2:], "direct"),
    ]
    seeds = [3, 1, 4, 1, 5]
    together = package.sample(Condition.cat(asked), seeds=seeds)
    for row, (condition, seed) in enumerate(zip(asked, seeds, strict=True)):
        alone = package.sample(condition, seeds=[seed])
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)


def test_x0_is_kept_in_range_by_default(package: ModelPackage) -> None:
    x, level = noisy(package)
    condition = package.condition(PROMPTS, guidance_scale=30.0)
    assert package.denoiser(x, level, condition).x0.abs().max() <= 1.0
    assert package.denoiser(x, level, unclipped(condition)).x0.abs().max() > 1.0


def test_defaults_of_the_card_are_used(package: ModelPackage) -> None:
    condition = package.condition(PROMPTS)
    assert condition.setting("guidance_scale", 0.0).tolist() == [package.defaults.guidance["guidance_scale"]] * 3
    assert package.plan().num_steps == package.defaults.num_steps == 4
    check_settings(package.denoiser, condition)


def test_guidance_by_clip_without_a_prompt_is_refused(package: ModelPackage) -> None:
    x, level = noisy(package)
    with pytest.raises(InvalidRequest, match="prompt"):
        package.denoiser(x, level, package.condition(3, "none").with_settings(clip_scale=1.0))


def test_pixels() -> None:
    x = torch.tensor([[[[-1.0, 1.0], [0.0, 5.0]]]])
    assert Pictures((1, 16, 16)).from_x(x).flatten().tolist() == [0, 255, 128, 255]
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(Pictures((1, 16, 16)).from_x(every.float() / 127.5 - 1), every)


def test_loading_a_model_imports_neither_ray_nor_mlflow() -> None:
    code = "import sys, workflows.model.model; print([m for m in ('ray', 'mlflow', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
