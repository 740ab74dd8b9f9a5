"""A CLIP in the loop that also trains the denoiser: the loss and the steps are those of open_clip and plain AdamW."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from tests.workflows.train.conftest import CLIP, tiny_config
from tests.workflows.train.loop.test_trainer import changed, difference, effective
from tests.workflows.train.ranks import Job, Ranks
from workflows.config.schema import TrainConfig
from workflows.data.dataset import Dataset
from workflows.towers.clip import Clip, ImageTower, TextTower
from workflows.towers.clip_files import save_clip
from workflows.towers.clip_model import build_model, model_config
from workflows.towers.identity import ClipIdentity
from workflows.towers.zero_shot import zero_shot
from workflows.train.batches import Share
from workflows.train.clip.batches import ClipBatch, Rows
from workflows.train.clip.objective import ClipObjective
from workflows.train.clip.stage import loop_config
from workflows.train.loop.trainer import learning_rate

CPU = torch.device("cpu")


@pytest.fixture
def job(clip: ClipObjective, clip_loop: TrainConfig, digits: Dataset) -> Job:
    return Job(clip, clip_loop, digits.folder, clip_loop.steps)


def plain_loss(model: open_clip.CLIP, clip: ClipObjective, batch: ClipBatch) -> Tensor:
    """Of the untouched model with its whole vocabulary, group by group, with open_clip's own loss."""
    losses = []
    for group in batch.groups.unique():
        rows = batch.groups == group
        out = model(batch.x[rows].expand(-1, 3, -1, -1), clip.vocabulary[batch.ids[rows]])
        losses.append(open_clip.ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"]))
    return torch.stack(losses).mean()


@pytest.fixture(scope="module")
def plain(clip: ClipObjective, clip_loop: TrainConfig, digits: Dataset) -> dict[str, Tensor]:
    """Weights of the whole model after a loop of a few lines in one process."""
    loop, batches, model = clip_loop, clip.open(digits.folder, clip_loop, CPU), build_model(CLIP, clip.side)[0]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    for step in range(loop.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(loop, step)
        optimizer.zero_grad()
        plain_loss(model, clip, batches.read(step * loop.batch_size, 0, Share())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), loop.clip_norm)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, torch.tensor(100.0).log())
    return {name: value.detach() for name, value in model.state_dict().items()}


def test_the_loss_is_open_clips_over_the_groups(clip: ClipObjective, clip_loop: TrainConfig, digits: Dataset) -> None:
    batch = clip.open(digits.folder, clip_loop, CPU).read(0, 0, Share())
    losses = clip.losses(clip.build(), batch).loss
    assert losses.shape == (30,)
    expected = plain_loss(build_model(CLIP, clip.side)[0], clip, batch)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    one_group = replace(batch, groups=torch.zeros_like(batch.groups))
    assert clip.losses(clip.build(), one_group).loss.mean().item() > expected.item() + 0.5


@pytest.mark.parametrize(("size", "sharding"), [(1, "ddp"), (2, "ddp"), (3, "fsdp")])
def test_steps_are_those_of_a_plain_loop_over_the_whole_model(
    ranks: Ranks, job: Job, clip: ClipObjective, plain: dict[str, Tensor], size: int, sharding: str
) -> None:
    """But tokens that do not occur keep their initial embedding, which decays there."""
    ended = ranks.run(size, changed(job, sharding=sharding))[0]
    model, _ = clip.whole(ended.weights)
    used, found, wanted = clip.vocabulary, model.state_dict(), dict(plain)
    initial = build_model(CLIP, clip.side)[0].token_embedding.weight
    assert model.token_embedding.weight.shape == initial.shape
    moved = (model.token_embedding.weight != initial).any(dim=1)
    assert set(moved.nonzero()[:, 0].tolist()) <= set(used.tolist())
    assert moved.sum() > 10
    for weights in (found, wanted):
        weights["token_embedding.weight"] = weights["token_embedding.weight"][used]
    assert difference(effective(found), effective(wanted)) <= 2e-5
    assert difference({"used": found["token_embedding.weight"]}, {"used": initial[used].detach()}) > 1e-3


def test_accumulated_groups_are_the_whole_batch(ranks: Ranks, job: Job) -> None:
    for sharding in ("ddp", "fsdp"):
        whole, parts = (ranks.run(2, changed(job, sharding=sharding, accumulate=n))[0] for n in (1, 3))
        assert difference(effective(whole.weights), effective(parts.weights)) <= 1e-5
        assert whole.figures["loss"] == pytest.approx(parts.figures["loss"], rel=1e-5)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_scale_stays_between_one_and_a_hundred(ranks: Ranks, job: Job, sharding: str) -> None:
    """Steps of half a nat would take it out at once."""
    loop = {"sharding": sharding, "learning_rate": 0.5, "warmup_steps": 0, "decay": "constant"}
    scale = float(ranks.run(2, changed(job, **loop))[0].weights["model.logit_scale"].exp())
    assert 1.0 - 1e-6 <= scale <= 100.0 + 1e-3


def test_only_matrices_decay(clip: ClipObjective, clip_loop: TrainConfig) -> None:
    network = clip.build()
    groups = clip.optimizer(network, clip_loop).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for group in groups for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert {group["betas"] for group in groups} == {(0.9, 0.98)}


def test_without_an_average_the_last_weights_are_kept(ranks: Ranks, job: Job) -> None:
    ended = ranks.run(2, job)[0]
    assert difference({name: ended.weights[name] for name in ended.ema}, ended.ema) == 0


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_bfloat16_trains(ranks: Ranks, job: Job, sharding: str) -> None:
    exact = ranks.run(2, job)[0]
    rounded = ranks.run(2, changed(job, precision="bf16", sharding=sharding))[0]
    assert 0 < difference(exact.weights, rounded.weights) < 5e-2
    assert rounded.figures["loss"] == pytest.approx(exact.figures["loss"], rel=5e-2)


def test_work_is_counted(clip: ClipObjective) -> None:
    deeper = replace(clip, clip=CLIP.model_copy(update={"text_layers": 2}))
    width, length = CLIP.text_width, CLIP.context_length
    block = 2 * length * width**2 * (4 + 2 * 4) + 4 * length**2 * width
    found = deeper.flop_per_sample(length) - clip.flop_per_sample(length)
    assert found == pytest.approx(3 * block, rel=0.02)


def test_a_short_training_names_held_out_digits(ranks: Ranks, digits: Dataset, job: Job, tmp_path: Path) -> None:
    size = {
        "embed_dim": 32,
        "text_width": 32,
        "vision_width": 48,
        "steps": 150,
        "batch_size": 40,
        "learning_rate": 1e-3,
    }
    short = CLIP.model_copy(update=size)
    objective = ClipObjective(short, 8, job.objective.vocabulary)
    loop = job.config.model_copy(update={"steps": 150, "batch_size": 40, "warmup_steps": 15})

    def accuracy(weights: dict[str, Tensor]) -> float:
        model, tokenizer = objective.whole(weights)
        save_clip(tmp_path, model, tokenizer, name="x", source="train", model_cfg=model_config(short, 8))
        clip = Clip(TextTower(model, tokenizer), ImageTower(model), ClipIdentity.load(tmp_path), 1.0)
        return zero_shot(clip, digits, CPU)["zero_shot"]

    assert accuracy(objective.build().state_dict()) < 0.3, "chance is 0.1"
    ended = ranks.run(2, Job(objective, loop, job.source, 150))[0]
    assert accuracy(ended.weights) > 0.6


def test_the_loop_is_configured_as_a_clip_is_trained(meanings: Rows) -> None:
    loop = loop_config(CLIP.model_copy(update={"num_workers": (1, 2), "batch_size": 64}), meanings)
    assert (loop.batch_size, loop.warmup_steps, loop.weight_decay, loop.ema_decay) == (60, 2, 0.1, 0.0)
    assert loop.num_workers == (1, 2)
    assert learning_rate(loop, 0) == pytest.approx(5e-4)
    assert learning_rate(loop, 2) == pytest.approx(1e-3)


def test_a_configured_number_of_workers_is_made_room_for(tmp_path: Path) -> None:
    assert tiny_config(tmp_path, "clip.num_workers=[1,5]", "classifier.train.num_workers=3").most_workers == 5
