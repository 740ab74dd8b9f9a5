"""The whole job on a user's own data: pictures with labels, and vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.workflows.data import samples_own as samples

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = (
    "clip.steps=60", "denoiser.train.sharding=ddp", "classifier.train.sharding=ddp",
    "denoiser.train.checkpoint_every=500",
    "evaluate.num_prompts=120", "evaluate.num_prompts_per_scale=24", "evaluate.num_prompts_per_gradient=24",
    "evaluate.num_steps=20", "register.model_name=mine", "name=mine", "storage.track_training=false",
)  # fmt: skip


def job(tmp_path: Path, *settings: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    options = [f"--set={item}" for item in (*SHORT, f"storage.root={tmp_path / 'runs'}", *settings)]
    done = subprocess.run(
        [sys.executable, "-m", "workflows.cli", "run", "--config", "digits", *options],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    report = tmp_path / "runs/mine/report.json"
    return done, json.loads(report.read_text()) if report.is_file() else {}


def test_labelled_pictures_are_judged_registered_and_served(tmp_path: Path) -> None:
    source = samples.write_folder(tmp_path / "photos", 240)
    done, report = job(
        tmp_path, "data.source=auto", f"data.path={source}", "data.image_size=8", "denoiser.train.steps=300",
        "classifier.train.steps=100", "serve.port=8765",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    figures = report["metrics"]["evaluate"]
    assert figures["accuracy"] > 0.8, "three plain colors"
    assert report["metrics"]["serve-check"]["requests"] == 12


def test_vectors_become_a_registered_model_that_draws_them(tmp_path: Path) -> None:
    import mlflow

    source = samples.write_vectors(tmp_path / "measured", 900)
    settings = [
        "data.source=vectors", f"data.path={source}", "denoiser.train.steps=800", "classifier.train.steps=150",
        "denoiser.network.width=64", "evaluate.guidance_scale=1.5", "evaluate.classifier_scale=1.0",
    ]  # fmt: skip
    done, report = job(tmp_path, *settings)
    assert done.returncode == 0, done.stderr + done.stdout
    figures = report["metrics"]["evaluate"]
    assert abs(figures["energy_distance_real"]) < 0.1
    assert figures["energy_distance_direct"] < 0.1
    shuffled = 0.5  # what rows of another class are away, at least: blobs three deviations apart
    assert figures["energy_distance_by_caption"] < shuffled
    rows = pd.read_csv(tmp_path / "runs/mine/samples.csv")
    assert list(rows.columns) == ["length", "width", "year", "constant", "caption"]
    assert (tmp_path / "runs/mine/samples.png").stat().st_size > 5000
    assert report["metrics"]["serve-check"] == {"requests": 0}
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs/mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/mine@champion")
    table = pd.DataFrame({"prompt": ["a red one"] * 40 + ["a blue one"] * 40})
    found = model.predict(table, params={"guidance": "direct", "num_inference_steps": 20})
    assert list(found.columns) == ["length", "width", "year", "constant", "seed"]
    red, blue = found[:40], found[40:]
    assert abs(red["length"].mean()) < 1.0
    assert abs(blue["length"].mean() - 6.0) < 1.0
    assert np.allclose(found["constant"], 7.0, atol=0.2)
