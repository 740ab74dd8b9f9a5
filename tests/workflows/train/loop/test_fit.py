"""What the driver derives from the configuration."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from ray.train import WorkerGroupError

from diffusion_core.networks import NoisyClassifierConfig
from diffusion_core.schedule import NoiseSchedule
from workflows.config.schema import RunConfig, TrainConfig
from workflows.embed.cache import EmbeddingCache
from workflows.errors import InvalidData, StageFailed, StorageUnwritable
from workflows.train.flop import flop_per_sample
from workflows.train.loop.checkpoints import checkpoint_name, sweep_orphans
from workflows.train.loop.fit import cpus_per_worker, explained, fingerprint
from workflows.train.objectives import ClassifierObjective, DenoiserObjective

EFFECTIVE = {
    "steps": 13,
    "batch_size": 8,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "warmup_steps": 3,
    "clip_norm": 0.5,
    "ema_decay": 0.5,
    "ema_widths": (0.1,),
    "snapshot_every": 3,
    "decay": "constant",
    "condition_dropout": 0.5,
    "weighting": "p2",
    "level_shift": 0.5,
    "level_density": "logit_normal",
    "compile": True,
    "precision": "bf16",
    "shuffle_rows": 9,
    "seed": 7,
}
WITHOUT_EFFECT = {
    "num_workers": 5,
    "sharding": "ddp",
    "accumulate": 2,
    "checkpoint_every": 1,
    "keep_checkpoints": 9,
    "checkpoint_async": False,
    "max_failures": 9,
    "log_every": 9,
    "shard_size": 2,
    "activation_checkpointing": True,
    "cpu_offload": True,
    "sample_every": 4,
    "minutes": 9.0,
    "cache_folder": Path("elsewhere"),
    "cache_bytes": 9,
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


def test_parts_of_a_batch_make_another_classifier_and_no_other_denoiser(
    config: RunConfig, denoiser: DenoiserObjective, classifier: ClassifierObjective, cache: EmbeddingCache
) -> None:
    pairs = ((denoiser, config.denoiser.train), (classifier, config.classifier.train))
    names = [
        {fingerprint(objective, train.model_copy(update={"accumulate": n}), cache) for n in (1, 2)}
        for objective, train in pairs
    ]
    assert [len(found) for found in names] == [1, 2]


def test_an_error_of_ours_comes_out_of_rays() -> None:
    ours = InvalidData("a shard is missing")
    assert explained(WorkerGroupError("", {0: RuntimeError("x"), 1: ours}), TrainConfig()) is ours
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = ours
    assert explained(WorkerGroupError("", {1: wrapped}), TrainConfig()) is ours


def test_a_lost_worker_becomes_one_sentence() -> None:
    told = explained(WorkerGroupError("", {1: OSError(5, "Input/output error")}), TrainConfig(max_failures=3))
    assert isinstance(told, StageFailed)
    assert "after 3 restarts (OSError: [Errno 5] Input/output error)" in str(told)
    assert "\n" not in str(told)


def test_a_full_disk_is_told_as_such() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    wrapped = RuntimeError("CheckpointException ranks:dict_keys([0])")
    wrapped.__cause__ = full
    for failure in (full, wrapped):
        told = explained(WorkerGroupError("", {0: failure}), TrainConfig())
        assert isinstance(told, StorageUnwritable)
        assert "free space" in str(told)


def test_only_recorded_checkpoints_survive_a_sweep(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        (tmp_path / checkpoint_name(step)).mkdir()
    (tmp_path / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_dir_name": "step-00000008"}')
    assert sweep_orphans(tmp_path) == ["step-00000004", "step-00000012"]
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-00000008"}
    assert sweep_orphans(tmp_path) == []


def test_settings_that_do_not_fit_together_are_refused() -> None:
    for values, told in (
        ({"num_workers": (3, 2)}, "least, most"),
        ({"sharding": "ddp", "cpu_offload": True}, "sharded weights"),
        ({"snapshot_every": 5}, "set ema_widths"),
    ):
        with pytest.raises(ValidationError, match=told):
            TrainConfig(**values)
    assert TrainConfig(num_workers=(1, 4)).most_workers == 4


def test_operations_are_counted_as_by_hand() -> None:
    """A label head alone: patches, one block of attention and feed-forward, and modulations."""
    width, elements = 32, 4
    config = NoisyClassifierConfig((1, 8, 8), patch=4, width=width, depth=1, num_heads=2, num_classes=10)
    deeper = replace(config, depth=2)
    block = 2 * elements * width**2 * (4 + 2 * 4) + 4 * elements**2 * width
    modulation = 2 * width * 6 * width
    found = flop_per_sample(deeper, 0) - flop_per_sample(config, 0)
    assert found == pytest.approx(3 * (block + modulation), rel=0.02)


@pytest.mark.parametrize(
    ("nodes", "num_workers", "share"),
    [([4], 1, 4), ([4], 2, 2), ([2], 3, 1), ([0, 2, 2], 1, 2), ([0, 4, 4], 2, 4), ([1, 1, 1], 2, 1), ([8, 2], 3, 2)],
)
def test_a_workers_share_fits_on_one_node(nodes: list[int], num_workers: int, share: int) -> None:
    assert cpus_per_worker(nodes, num_workers) == share
