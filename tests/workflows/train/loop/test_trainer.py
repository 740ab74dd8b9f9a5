"""Trainers on one to three processes: the same result however the work is shared, stopped and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion_core.errors import NonFinite
from tests.workflows.train.ranks import Job, Ranks
from workflows.config.schema import RunConfig, TrainConfig
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.errors import InvalidConfig
from workflows.train.batches import Share
from workflows.train.loop.trainer import learning_rate
from workflows.train.objectives import Objective

STEPS = 20
# The loop is the same for all three. The denoiser keeps the most: several averages. In the classifier's batch a caption
# competes with others, so its loss depends most on how a batch is split.
DENOISER, CLASSIFIER = (pytest.mark.parametrize("job", [name], indirect=True) for name in ("denoiser", "classifier"))


@pytest.fixture(params=["denoiser", "classifier", "clip"])
def job(
    request: pytest.FixtureRequest, config: RunConfig, cache: EmbeddingCache, digits: Dataset, clip_loop: TrainConfig
) -> Job:
    objective: Objective = request.getfixturevalue(request.param)
    if request.param == "clip":
        # A CLIP keeps no average; here it does, to see that it is saved too.
        return Job(objective, clip_loop.model_copy(update={"ema_decay": 0.999}), digits.folder, STEPS)
    train = config.denoiser.train.model_copy(update={"steps": STEPS})
    return Job(objective, train, cache.folder, STEPS)


def changed(job: Job, **values: object) -> Job:
    return replace(job, config=job.config.model_copy(update=values))


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def effective(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the biases of self-attention's keys: they shift all scores of a query alike, which changes nothing.

    So their gradient is rounding alone, and AdamW makes steps of the usual size out of it.
    """
    found = {name: value.clone() for name, value in weights.items()}
    for name, value in found.items():
        if name.endswith(("attention.qkv.bias", "attn.in_proj_bias")):
            value.view(3, -1)[1] = 0.0
    return found


def moved(job: Job, weights: dict[str, Tensor]) -> float:
    torch.manual_seed(job.config.seed)
    return difference(job.objective.build().state_dict(), weights)


@CLASSIFIER
def test_sharded_and_replicated_training_agree(ranks: Ranks, job: Job) -> None:
    ddp = ranks.run(2, changed(job, sharding="ddp"))[0]
    fsdp = ranks.run(2, changed(job, sharding="fsdp"))[0]
    assert moved(job, ddp.weights) > 1e-3
    assert difference(effective(ddp.weights), effective(fsdp.weights)) <= 1e-6
    assert difference(effective(ddp.ema), effective(fsdp.ema)) <= 1e-6
    other = ranks.run(2, changed(job, sharding="fsdp", seed=1))[0]
    assert difference(effective(ddp.weights), effective(other.weights)) > 1e-3
    assert ddp.figures["loss"] == pytest.approx(fsdp.figures["loss"], rel=1e-6)


@CLASSIFIER
def test_the_number_of_workers_does_not_change_the_result(ranks: Ranks, job: Job) -> None:
    alone = ranks.run(1, job)[0]
    for size in (2, 3):
        shared = ranks.run(size, job)[0]
        assert difference(effective(alone.weights), effective(shared.weights)) <= 1e-5
        assert shared.figures["loss"] == pytest.approx(alone.figures["loss"], rel=1e-5)
    other = ranks.run(1, changed(job, seed=1))[0]
    assert difference(alone.weights, other.weights) > 1e-3


@pytest.mark.parametrize("job", ["denoiser", "clip"], indirect=True)
def test_three_workers_train_the_others_as_one_does(ranks: Ranks, job: Job) -> None:
    """A smoke test: the claim itself is tested on the classifier, and on the CLIP in `clip/test_objective.py`."""
    alone, shared = (ranks.run(size, job)[0] for size in (1, 3))
    assert moved(job, alone.weights) > 1e-3
    assert difference(effective(alone.weights), effective(shared.weights)) <= 1e-5


@DENOISER
def test_accumulated_gradients_are_those_of_the_whole_batch(ranks: Ranks, job: Job) -> None:
    for sharding in ("ddp", "fsdp"):
        whole, parts = (ranks.run(2, changed(job, sharding=sharding, accumulate=n))[0] for n in (1, 3))
        assert difference(whole.weights, parts.weights) <= 1e-5
        assert whole.figures["loss"] == pytest.approx(parts.figures["loss"], rel=1e-5)


@CLASSIFIER
def test_accumulated_parts_change_what_a_classifier_learns(ranks: Ranks, job: Job) -> None:
    """A caption competes with those of its part: so `accumulate` is in the classifier's key."""
    whole, parts = (ranks.run(1, changed(job, accumulate=n))[0] for n in (1, 4))
    assert difference(effective(whole.weights), effective(parts.weights)) > 1e-4


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(ranks: Ranks, job: Job, sharding: str) -> None:
    job = changed(job, sharding=sharding)
    whole = ranks.run(2, job)[0]
    seven, _ = ranks.stop(2, replace(job, steps=7))
    resumed = ranks.run(2, replace(job, steps=STEPS - 7, load=seven))[0]
    assert resumed.samples_seen == whole.samples_seen
    assert difference(whole.weights, resumed.weights) == 0
    assert difference(whole.ema, resumed.ema) == 0


@CLASSIFIER
def test_a_resumed_run_that_loses_something_ends_elsewhere(ranks: Ranks, job: Job) -> None:
    """Negative controls of the test above: each part of a checkpoint is needed."""
    whole = ranks.run(2, job)[0]
    seven, _ = ranks.stop(2, replace(job, steps=7))
    again = replace(job, steps=STEPS - 7, load=seven)
    wrong = ranks.run(2, changed(again, seed=1))[0]
    assert difference(whole.weights, wrong.weights) > 1e-4
    no_average = ranks.run(2, replace(again, forget="ema"))[0]
    assert difference(whole.weights, no_average.weights) == 0
    assert difference(whole.ema, no_average.ema) > 1e-5
    no_moments = ranks.run(2, replace(again, forget="optimizer"))[0]
    assert difference(whole.weights, no_moments.weights) > 1e-4
    no_shard = ranks.run(2, replace(again, forget_rank=1))[0]
    assert difference(whole.weights, no_shard.weights) > 1e-4


@DENOISER
def test_a_checkpoint_written_beside_training_is_the_state_at_its_start(ranks: Ranks, job: Job, tmp_path: Path) -> None:
    seven, _ = ranks.stop(2, replace(job, steps=7))
    whole = ranks.run(2, replace(job, steps=STEPS - 7, load=seven, beside=tmp_path / "beside"))[0]
    resumed = ranks.run(2, replace(job, steps=STEPS - 7, load=tmp_path / "beside"))[0]
    assert difference(whole.weights, resumed.weights) == 0
    assert difference(whole.ema, resumed.ema) == 0


@DENOISER
def test_several_averages_are_kept_saved_and_sharded(ranks: Ranks, job: Job) -> None:
    assert job.config.ema_widths == (0.05, 0.2)
    whole = ranks.run(1, job)[0]
    seven, _ = ranks.stop(2, replace(job, steps=7))
    resumed = ranks.run(3, replace(job, steps=STEPS - 7, load=seven))[0]
    for width in (0.05, 0.2):
        assert difference(effective(whole.powers[width]), effective(resumed.powers[width])) <= 1e-5
        assert difference(whole.powers[width], whole.ema) > 5e-5
    assert difference(whole.powers[0.05], whole.powers[0.2]) > 1e-4


@DENOISER
def test_recomputed_offloaded_and_hybrid_training_give_the_same(ranks: Ranks, job: Job) -> None:
    plain = ranks.run(2, job)[0]
    for values in (
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "sharding": "ddp"},
        {"cpu_offload": True},
        {"sharding": "hybrid", "shard_size": 2},
        {"sharding": "hybrid", "shard_size": 1},
    ):
        assert difference(plain.weights, ranks.run(2, changed(job, **values))[0].weights) <= 1e-6, values
    four = ranks.run(4, changed(job, sharding="hybrid", shard_size=2))[0]
    assert difference(plain.weights, four.weights) <= 1e-5
    with pytest.raises(InvalidConfig, match="3 workers do not divide into groups of shard_size 2"):
        ranks.run(3, changed(job, sharding="hybrid", shard_size=2))


@CLASSIFIER
def test_a_checkpoint_loads_at_another_world_size_and_sharding(ranks: Ranks, job: Job, tmp_path: Path) -> None:
    whole = ranks.run(2, job)[0]
    ranks.run(2, replace(job, steps=4, save=tmp_path / "four"))
    ranks.run(1, replace(changed(job, sharding="ddp"), steps=4, load=tmp_path / "four", save=tmp_path / "eight"))
    ended = ranks.run(3, replace(job, steps=STEPS - 8, load=tmp_path / "eight"))[0]
    assert ended.samples_seen == whole.samples_seen
    assert difference(effective(whole.weights), effective(ended.weights)) <= 1e-5
    assert difference(effective(whole.ema), effective(ended.ema)) <= 1e-5


@DENOISER
def test_a_checkpoint_loads_into_every_way_of_sharing_the_work(ranks: Ranks, job: Job, tmp_path: Path) -> None:
    """Every field that says how the work is shared changes on the way, and some change back."""
    ways: list[tuple[int, dict[str, object]]] = [
        (2, {"sharding": "fsdp", "cpu_offload": True}),
        (4, {"sharding": "hybrid", "shard_size": 2}),
        (1, {"sharding": "ddp", "activation_checkpointing": True}),
        (3, {"sharding": "fsdp", "accumulate": 2}),
    ]
    job = replace(job, steps=2)
    whole = ranks.run(2, replace(job, steps=2 * len(ways)))[0]
    before = None
    for number, (size, values) in enumerate(ways):
        after = tmp_path / str(number)
        ended = ranks.run(size, replace(changed(job, **values), load=before, save=after))[0]
        before = after
    assert ended.samples_seen == whole.samples_seen
    assert difference(effective(whole.weights), effective(ended.weights)) <= 1e-5
    assert difference(effective(whole.ema), effective(ended.ema)) <= 1e-5
    for width in job.config.ema_widths:
        assert difference(effective(whole.powers[width]), effective(ended.powers[width])) <= 1e-5


def test_a_loss_that_is_not_finite_stops_every_worker_before_the_update(ranks: Ranks, job: Job) -> None:
    three, (fine, _) = ranks.stop(2, replace(job, steps=3))
    names = dict(job.objective.build().named_parameters())
    spoil = next(name for name in names if name.endswith(("blocks.0.feed_forward.0.bias", "resblocks.0.ln_1.bias")))
    spoiled = replace(job, steps=1, load=three, spoil=spoil)
    batch = job.objective.open(job.source, job.config, torch.device("cpu")).read(fine.samples_seen, 0, Share())
    stopped = ranks.run(2, spoiled)
    for ended in stopped:
        assert isinstance(ended.error, NonFinite)
        assert str(ended.error).startswith("step 4:")
        assert ended.error.rows == tuple(batch.sample_ids.unique().tolist())
        assert ended.samples_seen == fine.samples_seen
    others = fine.weights.keys() - {spoiled.spoil}
    assert difference(*({name: run.weights[name] for name in others} for run in (stopped[0], fine))) == 0
    assert ranks.run(2, replace(spoiled, spoil=None))[0].error is None


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert 0 < rates[-1] < 1e-3
    constant = config.model_copy(update={"decay": "constant"})
    assert [learning_rate(constant, step) for step in (4, 9, 50, 99)] == [1.0, 2.0, 2.0, 2.0]


@CLASSIFIER
def test_compiled_blocks_and_bfloat16_train(ranks: Ranks, job: Job) -> None:
    job = replace(job, steps=3)
    exact = ranks.run(2, job)[0]
    for sharding in ("ddp", "fsdp"):
        rounded = ranks.run(2, changed(job, precision="bf16", sharding=sharding))[0]
        assert 0 < difference(exact.weights, rounded.weights) < 1e-2
        assert rounded.figures["loss"] == pytest.approx(exact.figures["loss"], rel=2e-2)
