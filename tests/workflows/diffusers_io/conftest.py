"""Tiny pipelines, and the packages made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.diffusers_io import pipelines
from workflows.diffusers_io.importing import import_pipeline
from workflows.model.model import ModelPackage

SCHEDULES: dict[str, dict[str, Any]] = {
    "leading-offset": {},
    "trailing": {"timestep_spacing": "trailing", "set_alpha_to_one": True},
    "linspace-v": {"timestep_spacing": "linspace", "prediction_type": "v_prediction"},
    "no-offset": {"steps_offset": 0},
    "zero-v": pipelines.ZERO,
    "zero-v-leading": pipelines.ZERO | {"timestep_spacing": "leading", "steps_offset": 1},
}


@dataclass(frozen=True)
class Pair:
    """A pipeline as diffusers has it, its folder, and the package that was made of it."""

    pipe: Any
    folder: Path
    package: ModelPackage


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Makes each pair once: `sd NAME_OF_SCHEDULE`, `ddpm`, `ddim`, `dit`."""
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in made:
            root = tmp_path_factory.mktemp("pipeline")
            pipe = _pipeline(name, root / "source")
            import_pipeline(root / "source", root / "package")
            made[name] = Pair(pipe, root / "source", ModelPackage.load(root / "package"))
        return made[name]

    return make


def _pipeline(name: str, folder: Path) -> Any:
    if name == "dit":
        return pipelines.dit(folder)
    if name == "ddpm":
        return pipelines.ddpm_pixels(folder)
    if name == "ddim":
        return pipelines.ddpm_pixels(folder, pipeline="DDIMPipeline", clip_sample=False)
    schedule = name.removeprefix("sd ")
    return pipelines.stable_diffusion(folder, SCHEDULES[schedule], penultimate=schedule.startswith("zero"))
