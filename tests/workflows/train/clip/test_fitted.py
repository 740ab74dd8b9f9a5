"""What a CLIP takes from the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflows.config.load import load_config
from workflows.config.schema import ClipConfig
from workflows.data.dataset import Dataset
from workflows.data.stage import build_data
from workflows.runtime.progress import Progress
from workflows.train.clip.fitted import fitted, sized, token_counts


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_the_built_in_jobs_train_the_clip_that_their_results_were_quoted_for(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["data.num_samples=500"])
    build_data(config, {}, tmp_path, Progress.silent())
    dataset = Dataset.open(tmp_path)
    found, told = fitted(config.clip, dataset)
    assert found.model_dump() == config.clip.model_dump() | {"context_length": 16}
    assert told == []
    assert token_counts(dataset).total == sum(len(texts) for texts in dataset.read("train").captions)


def test_a_number_stays(tmp_path: Path) -> None:
    build_data(load_config("digits"), {}, tmp_path, Progress.silent())
    clip = ClipConfig(context_length=5)
    assert fitted(clip, Dataset.open(tmp_path)) == (clip, [])


def test_it_grows_with_the_pictures() -> None:
    sizes = [sized(ClipConfig(size="auto"), pictures) for pictures in (3, 1_999, 2_000, 60_000, 5_000_000)]
    assert sizes[0] == sizes[1] == ClipConfig(), "the size that the built-in jobs have"
    widths = [(size.text_width, size.vision_width, size.embed_dim) for size in sizes]
    assert widths == sorted(widths)
    assert len(set(widths)) == 4
    assert sized(ClipConfig(text_width=48), 5_000_000).text_width == 48, "a size that is set stays"
