"""What the driver derives from the configuration."""

from __future__ import annotations

from dataclasses import replace

from ray.train import WorkerGroupError

from diffusion_core.schedule import NoiseSchedule
from workflows.config import RunConfig, TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.errors import InvalidData, StageFailed
from workflows.train.fit import explained, fingerprint
from workflows.train.objectives import ClassifierObjective, DenoiserObjective

EFFECTIVE = {
    "steps": 13,
    "batch_size": 8,
    "accumulate": 2,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "warmup_steps": 3,
    "clip_norm": 0.5,
    "ema_decay": 0.5,
    "condition_dropout": 0.5,
    "weighting": "p2",
    "compile": True,
    "precision": "bf16",
    "seed": 7,
}
WITHOUT_EFFECT = {
    "num_workers": 5,
    "sharding": "ddp",
    "checkpoint_every": 1,
    "keep_checkpoints": 9,
    "max_failures": 9,
    "log_every": 9,
}


def test_a_run_bears_a_name_of_what_determines_its_result(
    config: RunConfig, denoiser: DenoiserObjective, classifier: ClassifierObjective, cache: EmbeddingCache
) -> None:
    train = config.denoiser.train
    name = fingerprint(denoiser, train, cache)
    assert name == fingerprint(denoiser, train, EmbeddingCache.open(cache.folder))
    for key, value in WITHOUT_EFFECT.items():
        assert fingerprint(denoiser, train.model_copy(update={key: value}), cache) == name
    others = [train.model_copy(update={key: value}) for key, value in EFFECTIVE.items()]
    names = {fingerprint(denoiser, other, cache) for other in others}
    names.add(fingerprint(replace(denoiser, schedule=NoiseSchedule.linear()), train, cache))
    names.add(fingerprint(replace(denoiser, config=replace(denoiser.config, depth=3)), train, cache))
    names.add(fingerprint(replace(denoiser, parameterization="x0"), train, cache))
    names.add(fingerprint(classifier, train, cache))
    assert len(names | {name}) == len(EFFECTIVE) + 5
    assert EFFECTIVE.keys() | WITHOUT_EFFECT.keys() == TrainConfig.model_fields.keys()


def test_an_error_of_ours_comes_out_of_rays() -> None:
    ours = InvalidData("a shard is missing")
    assert explained(WorkerGroupError("", {0: RuntimeError("x"), 1: ours}), TrainConfig()) is ours
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = ours
    assert explained(WorkerGroupError("", {1: wrapped}), TrainConfig()) is ours


def test_a_lost_worker_becomes_one_sentence() -> None:
    told = explained(WorkerGroupError("", {1: OSError(28, "No space left on device")}), TrainConfig(max_failures=3))
    assert isinstance(told, StageFailed)
    assert "after 3 restarts (OSError: [Errno 28] No space left on device)" in str(told)
    assert "\n" not in str(told)
