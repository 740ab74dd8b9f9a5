"""A model of vectors is evaluated, swept and compared, with labels and without; rows are drawn in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.workflows.model.test_vector_model import CAPTIONS, SCALE, package  # noqa: F401 - a fixture
from workflows.config.load import load_config
from workflows.data.dataset import SCHEMA, SPLITS, DataInfo, Dataset, part_path
from workflows.evaluate import full, vectors
from workflows.evaluate.full import evaluate_model
from workflows.evaluate.sampling import SampleJob, draw
from workflows.package.source import ModelSource
from workflows.release import comparison
from workflows.release.comparison import compare_packages
from workflows.runtime.progress import Progress
from workflows.storage.shards import write_shard
from workflows.sweep import run as sweep
from workflows.sweep.run import run_sweep

NAMES = ("red", "blue")
SMALL = [
    "evaluate.num_prompts=12",
    "evaluate.num_prompts_per_gradient=3",
    "evaluate.num_steps=2",
    "sweep.num_pictures=6",
    "sweep.steps=[1, 2]",
    "sweep.etas=[0, 1]",
    "sweep.guidance_scales=[0, 1]",
    "sweep.classifier_scales=[0, 1]",
    "sweep.clip_scales=[0, 1]",
    "sweep.num_steps=2",
    "sweep.samplers=[ddim]",
    "register.gate.num_prompts=20",
    "register.gate.resamples=20",
]


def write_data(folder: Path, *, labels: bool) -> Dataset:
    attributes = {"label": NAMES} if labels else {}
    info = DataInfo("vectors", (3,), NAMES if labels else (), attributes, 60, 20, "0", CAPTIONS, (), SCALE)
    parts = {}
    for split in SPLITS:
        count = info.num_samples(split)
        rows = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
        columns = {
            "sample_id": range(count),
            "image": [row.tobytes() for row in rows],
            "captions": [[CAPTIONS[row % 2]] for row in range(count)],
            "label": [row % 2 if labels else -1 for row in range(count)],
            "attributes": [[NAMES[row % 2]] if labels else [] for row in range(count)],
            "unseen": [False] * count,
        }
        parts[split] = (write_shard(folder, part_path(split, 0), pa.table(columns, schema=SCHEMA), split),)
    replace(info, parts=parts).save(folder)
    return Dataset.open(folder)


@pytest.mark.parametrize("labels", [True, False])
def test_figures_tables_and_verdict(
    package: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: bool,
) -> None:
    def drawn(folder: Path, jobs: Sequence[SampleJob], *_: Any) -> list[Any]:
        return [draw(str(folder), job) for job in jobs]

    for module in (comparison, vectors, sweep):
        monkeypatch.setattr(module, "sample_jobs", drawn)
    for module in (full, sweep):
        monkeypatch.setattr(module, "log_results", lambda *_: None)
    dataset, quiet = write_data(tmp_path, labels=labels), Progress.silent()
    config = load_config("digits", [f"storage.root={tmp_path}", *SMALL])
    report = evaluate_model(config, ModelSource("mine", package), dataset, quiet)
    assert report.figures["intervals"]["energy_distance"]["low"] <= report.figures["energy_distance"]
    assert "energy_distance" in report.text()
    assert (report.folder / "samples.png").is_file()
    folder = run_sweep(config, ModelSource("mine", package), dataset, quiet)
    assert "best_energy_distance" in json.loads((folder / "summary.json").read_text())["classifier_free"]
    found = compare_packages(config, package, package, dataset, quiet)
    assert [line.metric for line in found.lines] == ["energy_distance", "held_out_loss", "copies"]
    assert found.passed
