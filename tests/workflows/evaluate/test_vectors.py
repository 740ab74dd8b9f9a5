"""Evaluation of vectors, with a stand-in for what the model draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from workflows.config.schema import EvaluateConfig
from workflows.data.dataset import SCHEMA, SPLITS, DataInfo, Dataset, part_path
from workflows.data.rows import Pictures, Vectors
from workflows.data.scale import VectorScale
from workflows.evaluate import vectors
from workflows.evaluate.sampling import SampleJob
from workflows.evaluate.stage import _EVALUATIONS
from workflows.runtime.progress import Progress
from workflows.storage.shards import write_shard

SCALE = VectorScale(("a", "b"), (100.0, -5.0), (10.0, 0.5))
COLORS = ("red", "blue")


def normals(rows: int, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)


def write_data(folder: Path) -> Dataset:
    info = DataInfo("vectors", (2,), COLORS, {"label": COLORS}, 60, 40, "0", ("a red one", "a blue one"), (), SCALE)
    parts = {}
    for seed, split in enumerate(SPLITS):
        rows = normals(info.num_samples(split), seed)
        names = [COLORS[row % 2] for row in range(len(rows))]
        columns = {
            "sample_id": range(len(rows)),
            "image": [row.tobytes() for row in rows],
            "captions": [[f"a {name} one"] for name in names],
            "label": [COLORS.index(name) for name in names],
            "attributes": [[name] for name in names],
            "unseen": [False] * len(rows),
        }
        parts[split] = (write_shard(folder, part_path(split, 0), pa.table(columns, schema=SCHEMA), split),)
    replace(info, parts=parts).save(folder)
    return Dataset.open(folder)


def test_figures_compare_normalised_rows_and_files_hold_raw_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(package: Path, jobs: Sequence[SampleJob], *_: Any) -> list[NDArray[Any]]:
        """Right rows for the first job, the headline, and rows far away for the others."""
        assert package == tmp_path / "package"
        return [normals(len(job.prompts), 7) + (5.0 if number else 0.0) for number, job in enumerate(jobs)]

    monkeypatch.setattr(vectors, "sample_jobs", drawn)
    dataset = write_data(tmp_path)
    asked = EvaluateConfig(num_prompts=40, num_prompts_per_gradient=16)
    evaluate = _EVALUATIONS[dataset.info.rows.name]
    figures = evaluate(asked, dataset, tmp_path / "clip", tmp_path, Progress.silent())
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures
    assert figures["energy_distance"] == figures["energy_distance_classifier_free"] < 0.3
    assert figures["energy_distance_real"] < 0.3
    assert figures["energy_distance_direct"] > 3.0, "rows far away are told from right ones"
    table = pd.read_csv(tmp_path / "samples.csv")
    assert list(table) == ["a", "b", "caption"]
    np.testing.assert_allclose(table[["a", "b"]], SCALE.raw(normals(40, 7)), rtol=1e-6)
    assert table["caption"].tolist() == ["a red one", "a blue one"] * 20
    assert (tmp_path / "samples.png").is_file()


def test_every_type_of_rows_has_its_evaluation() -> None:
    assert set(_EVALUATIONS) == {Pictures.name, Vectors.name}
