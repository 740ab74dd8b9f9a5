"""Captions that leave a CLIP little to learn: data, CLIP, embeddings, denoiser and classifier end with figures."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from workflows.config.load import load_config
from workflows.job.outlook import outlook
from workflows.job.pipeline import JobResult, plan_job, run_job
from workflows.job.stages import STAGES
from workflows.runtime.progress import Progress

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow, pytest.mark.timeout(900)]

LANGUAGES = (
    "ein roter Kreis", "un cercle rouge", "un círculo rojo", "красный круг", "赤い丸", "빨간 원",
    "红色圆圈", "دائرة حمراء", "ένας κόκκινος κύκλος", "लाल वृत्त",
)  # fmt: skip
SIZES = (
    "clip.steps=auto", "clip.minutes=0.05", "clip.num_workers=1", "data.image_size=8", "clip.patch_size=4",
    *(f"{part}.network.patch_size=4" for part in ("denoiser", "classifier")),
    *(f"{part}.network.width=32" for part in ("denoiser", "classifier")),
    *(f"{part}.train.minutes=0.05" for part in ("denoiser", "classifier")),
    *(f"{part}.train.num_workers=1" for part in ("denoiser", "classifier")),
    "storage.track_training=false",
)  # fmt: skip


def write(folder: Path, captions: Sequence[str]) -> Path:
    """A picture of noise for each caption."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as lines:
        for number, caption in enumerate(captions):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "text": caption}) + "\n")
    return folder


def train(tmp_path: Path, captions: Sequence[str], *settings: str) -> tuple[JobResult, str]:
    screen = io.StringIO()
    data = f"data.path={write(tmp_path / 'mine', captions)}"
    config = load_config("pictures", [*SIZES, data, f"storage.root={tmp_path / 'runs'}", *settings])
    progress = Progress(Console(file=screen, width=200))
    plan = plan_job(config, STAGES[:5])
    return run_job(config, progress, plan, lambda _: nullcontext(), outlook), screen.getvalue()


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        (["a picture"] * 24, "not judged: no two held-out pictures have captions that differ"),
        ([text for text in LANGUAGES for _ in range(3)], "chance is "),
        (["seven"] * 12 + [f"picture {n} " + "word " * 299 for n in range(12)], "captions are cut"),
        ([f"picture number {n}" for n in range(3)], "not judged"),
    ],
    ids=["all equal", "ten languages", "of 1 and of 300 words", "three pictures"],
)
def test_each_ends_with_figures(captions: list[str], told: str, tmp_path: Path) -> None:
    result, log = train(tmp_path, captions, "data.held_out=0.34")
    figures = {outcome.artifact.stage: outcome.artifact.metrics for outcome in result.outcomes}
    assert list(figures) == ["data", "clip", "embed", "denoiser", "classifier"]
    assert told in log, log
    for part in ("clip", "denoiser", "classifier"):
        assert np.isfinite(figures[part]["loss"])
        assert f"{part}: steps: auto is {figures[part]['steps']:,} steps of" in log
