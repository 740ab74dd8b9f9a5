"""The noisy classifier: its log densities by their definitions, its gradient, and whom it judges by what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.errors import InvalidCondition, InvalidGuidance, InvalidShape
from diffusion_core.guidance import GradientGuidance
from diffusion_core.networks import NoisyClassifier, NoisyClassifierConfig, NoisyFeatures, contrastive_loss
from diffusion_core.schedule import NoiseSchedule

F64, SHAPE, CLASSES, DIM, ROWS = torch.float64, (2, 4, 6), 3, 5, 4
LEVEL = torch.tensor([1, 400, 700, 1000])


def classifier(**heads: int) -> NoisyClassifier:
    generator = torch.Generator().manual_seed(3)
    config = NoisyClassifierConfig(SHAPE, (2, 3), width=16, depth=2, num_heads=2, **heads)
    network = NoisyClassifier(config).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        network.candidates.copy_(torch.randn(network.candidates.shape, generator=generator))
    return network


def both(num_candidates: int = 6) -> NoisyClassifier:
    return classifier(num_classes=CLASSES, embed_dim=DIM, num_candidates=num_candidates)


def noisy(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=F64)


def texts(seed: int = 5, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_label_density_is_the_log_softmax() -> None:
    network, x = both(), noisy()
    logits = network(x, LEVEL.double()).logits
    label = torch.tensor([2, 0, 1, 1])
    wanted = logits.log_softmax(dim=1)[torch.arange(ROWS), label]
    assert torch.allclose(network.log_density(x, LEVEL, Condition.of(label=label)), wanted, atol=1e-12)


def test_text_density_normalises_over_candidates_and_the_own_text() -> None:
    network, x, pooled = both(), noisy(), texts()
    pooled[1] = 3.0 * network.candidates[4]
    seen = network(x, LEVEL.double())
    scaled = [seen.logit_scale * functional.cosine_similarity(seen.embedding, text) for text in network.candidates]
    own = seen.logit_scale * functional.cosine_similarity(seen.embedding, pooled)
    candidates = torch.stack(scaled, dim=1)
    wanted = own - torch.cat([candidates, own[:, None]], dim=1).logsumexp(dim=1)
    wanted[1] = own[1] - candidates[1].logsumexp(dim=0)
    found = network.log_density(x, LEVEL, Condition.of(pooled=pooled))
    assert torch.allclose(found, wanted, atol=1e-12)
    assert bool((found < 0).all())


def test_candidates_densities_sum_to_one() -> None:
    network, x = both(), noisy()[:1]
    rows = network.candidates.shape[0]
    same = x.expand(rows, *SHAPE)
    density = network.log_density(same, LEVEL[1].expand(rows), Condition.of(pooled=network.candidates))
    assert float(density.exp().sum().detach()) == pytest.approx(1.0, abs=1e-12)


def test_without_candidates_the_density_is_the_scaled_cosine() -> None:
    network, x, pooled = both(num_candidates=0), noisy(), texts()
    seen = network(x, LEVEL.double())
    wanted = seen.logit_scale * functional.cosine_similarity(seen.embedding, pooled)
    assert torch.allclose(network.log_density(x, LEVEL, Condition.of(pooled=pooled)), wanted, atol=1e-12)


def test_each_row_is_judged_by_its_label_or_else_its_text() -> None:
    network, x, pooled = both(), noisy(), texts()
    mixed = network.log_density(x, LEVEL, Condition.of(pooled=pooled, label=[1, -1, -1, 2]))
    by_label = network.log_density(x, LEVEL, Condition.of(label=[1, 0, 0, 2]))
    by_text = network.log_density(x, LEVEL, Condition.of(pooled=pooled))
    judged = torch.tensor([True, False, False, True])
    assert torch.allclose(mixed, torch.where(judged, by_label, by_text), atol=1e-12)


def test_a_hidden_target_is_judged_all_the_same() -> None:
    network, x = both(), noisy()
    condition = Condition.of(pooled=texts(), label=[1, -1, -1, 2])
    assert torch.equal(network.log_density(x, LEVEL, condition.hidden()), network.log_density(x, LEVEL, condition))


@pytest.mark.parametrize("condition", [Condition.of(label=[0, 1, 2, 0]), Condition.of(pooled=texts())])
def test_gradient_agrees_with_finite_differences(condition: Condition) -> None:
    network = both()
    x = noisy().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network.log_density(x, LEVEL, condition), (x,), atol=1e-6)


def test_rows_are_independent() -> None:
    network, x, condition = both(), noisy(), Condition.of(pooled=texts(), label=[1, -1, -1, 2])
    together = network.log_density(x, LEVEL, condition)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = network.log_density(x[one], LEVEL[one], condition.rows(one))
        assert float((alone - together[one]).detach().abs()) <= 1e-10


def test_guidance_shifts_x0_along_its_gradient() -> None:
    """`eps - s sigma grad` moves x0 by `s sigma^2 / alpha grad`, by label and by text, of rows that are hidden too."""
    network, schedule, x, level = both(), NoiseSchedule.cosine(1000), noisy().requires_grad_(), torch.full((ROWS,), 300)
    condition = Condition.of(pooled=texts(), label=[1, -1, -1, 2]).hidden()
    plain = NetworkDenoiser(lambda x, _level, _condition: torch.zeros_like(x), schedule, "v")
    gradient = torch.autograd.grad(network.log_density(x, level, condition).sum(), x)[0]
    assert float(gradient.flatten(1).abs().amax(dim=1).min()) > 0
    guided = GradientGuidance(plain, network.log_density, scale=2.0)(x.detach(), level, condition)
    alpha_bar = schedule.alpha_bar[300]
    shift = guided.x0 - plain(x.detach(), level, condition).x0
    assert torch.allclose(shift, 2.0 * (1.0 - alpha_bar) / alpha_bar.sqrt() * gradient, atol=1e-12)


def test_gradients_reach_every_parameter() -> None:
    network = both()
    network.log_density(noisy(), LEVEL, Condition.of(pooled=texts(), label=[1, -1, -1, 2])).sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_rows_without_a_target_are_named() -> None:
    network, x = both(), noisy()
    pooled = texts()
    pooled[2] = 0.0
    with pytest.raises(InvalidGuidance, match=r"rows \[2\] have no target .* judges by label or text"):
        network.log_density(x, LEVEL, Condition.of(pooled=pooled, label=[1, -1, -1, 2]))
    with pytest.raises(InvalidGuidance, match=r"rows \[0, 1, 2, 3\] .* judges by label$"):
        classifier(num_classes=CLASSES).log_density(x, LEVEL, Condition.of(pooled=pooled))
    with pytest.raises(InvalidGuidance, match=r"rows \[0, 1, 2, 3\] .* judges by text$"):
        classifier(embed_dim=DIM).log_density(x, LEVEL, Condition.of(label=[0, 1, 2, 0]))


def test_wrong_targets_are_refused() -> None:
    network, x = both(), noisy()
    with pytest.raises(InvalidCondition, match="row 3 has label 3"):
        network.log_density(x, LEVEL, Condition.of(label=[0, 1, 2, 3]))
    with pytest.raises(InvalidCondition, match="width 6, wanted 5"):
        network.log_density(x, LEVEL, Condition.of(pooled=torch.ones(ROWS, 6)))
    with pytest.raises(InvalidShape, match="num_classes, embed_dim or both"):
        NoisyClassifier(NoisyClassifierConfig(SHAPE, (2, 3)))


def features(embedding: Tensor) -> NoisyFeatures:
    return NoisyFeatures(None, functional.normalize(embedding, dim=1), torch.tensor([7.0], dtype=F64))


def test_contrastive_loss_is_clips_when_all_captions_differ() -> None:
    image, text = texts(1), texts(2)
    logits = 7.0 * functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T
    target = torch.arange(ROWS)
    wanted = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2.0
    assert torch.allclose(contrastive_loss(features(image), text).mean(), wanted, atol=1e-12)


def test_rows_of_one_caption_are_no_wrong_answers() -> None:
    image, text = texts(1), texts(2)
    text[1] = 2.0 * text[0]
    loss = contrastive_loss(features(image), text)
    without_1 = contrastive_loss(features(image[[0, 2, 3]]), text[[0, 2, 3]])
    # Row 0 competes with rows 2 and 3 alone. Those still compete with both pictures of the shared caption.
    assert torch.allclose(loss[0], without_1[0], atol=1e-12)
    assert bool((loss[2:] > without_1[1:]).all())


def test_a_perfect_match_costs_less_than_a_swapped_one() -> None:
    text = texts(2)
    assert contrastive_loss(features(text), text).mean() < contrastive_loss(features(text[[1, 0, 3, 2]]), text).mean()


def test_vectors_are_judged_by_both_heads() -> None:
    torch.manual_seed(0)
    config = NoisyClassifierConfig((7,), width=16, depth=1, num_heads=2, num_classes=CLASSES, embed_dim=DIM)
    network, x = NoisyClassifier(config), torch.randn(ROWS, 7, requires_grad=True)
    for condition in (Condition.of(label=torch.tensor([0, 1, 2, 0])), Condition.of(pooled=texts().float())):
        density = network.log_density(x, LEVEL, condition)
        (gradient,) = torch.autograd.grad(density.sum(), x)
        assert density.shape == (ROWS,)
        assert bool((gradient.abs().sum(dim=1) > 0).all())
    with pytest.raises(InvalidShape, match=r"rows of shape \(6,\)"):
        network(torch.randn(ROWS, 6), LEVEL.float())
