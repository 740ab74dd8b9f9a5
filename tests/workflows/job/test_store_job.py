"""The whole job with its data and its cache in object storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflows.data import samples_own as samples
from tests.workflows.storage.bucket import Bucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = (
    "clip.steps=60", "denoiser.train.sharding=ddp", "classifier.train.sharding=ddp", "denoiser.train.steps=300",
    "classifier.train.steps=100", "data.source=auto", "data.image_size=8", "name=stored",
    "evaluate.num_prompts=120", "evaluate.num_prompts_per_scale=24", "evaluate.num_prompts_per_gradient=24",
    "evaluate.num_steps=20", "storage.track_training=false", "serve.port=8767", "embed.rows_per_shard=40",
    "denoiser.train.shuffle_rows=80", "classifier.train.shuffle_rows=80",
)  # fmt: skip


def run(tmp_path: Path, root: str, *settings: str) -> dict[str, object]:
    options = [f"--set={item}" for item in (*SHORT, f"storage.root={tmp_path / root}", *settings)]
    done = subprocess.run(
        [sys.executable, "-m", "workflows.cli", "run", "--config", "digits", *options],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, object] = json.loads((tmp_path / root / "stored/report.json").read_text())
    return report


def test_a_job_from_buckets_ends_as_one_from_folders(tmp_path: Path, bucket: Bucket) -> None:
    source = samples.write_folder(tmp_path / "photos", 240)
    stores = [f"data.store={bucket.url('data')}", f"embed.store={bucket.url('cache')}"]
    copies = [f"{part}.train.cache_folder={tmp_path / 'copies'}" for part in ("denoiser", "classifier")]
    remote = run(tmp_path, "remote", f"data.path={source}", *stores, *copies)
    local = run(tmp_path, "local", f"data.path={source}")
    for stage, figures in (
        ("data", ("data_hash", "num_train")),
        ("denoiser", ("bundle_hash",)),
        ("classifier", ("bundle_hash",)),
    ):
        for figure in figures:
            assert remote["metrics"][stage][figure] == local["metrics"][stage][figure], (stage, figure)  # type: ignore[index]
    for name in ("data", "cache"):
        assert bucket.versions(name), f"something lies in {name}"
    artifacts = tmp_path / "remote/artifacts"
    assert not [*artifacts.glob("data/*/train/*"), *artifacts.glob("embed/*/train/**/*.arrow")], "nothing lies here"
    assert list((tmp_path / "copies").glob("*.arrow"))
