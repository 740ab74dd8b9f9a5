"""What a sweep draws, without drawing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workflows.config.load import load_config
from workflows.errors import InvalidRequest
from workflows.evaluate.prompts import Prompts
from workflows.model.model import ModelPackage
from workflows.options.guidance import DEFAULT_SCALES, SCALED, Guidance
from workflows.package.files import Defaults
from workflows.sweep.run import plan_tables

PROMPT = "a handwritten seven"
ZERO = np.zeros(1, np.int64)
PROMPTS = Prompts((PROMPT,), ZERO, ZERO[:, None], (7,), np.zeros(1, np.bool_))


@pytest.mark.parametrize(
    "own", [{"guidance_scale": 0.5, "cfg_plus_plus": True}, {"guidance_interval": [0.5, 5.0], "guidance_rescale": 0.7}]
)
def test_every_scale_is_swept_without_the_other_settings_of_the_model(tiny_package: Path, own: dict[str, Any]) -> None:
    package = ModelPackage.load(tiny_package)
    package.card = replace(package.card, defaults=Defaults(4, DEFAULT_SCALES | own))
    guidance = [point.job.guidance for point in plan_tables(load_config("digits").sweep, PROMPTS)["guidance"]]
    read = [set(package.condition([PROMPT], one).settings) for one in guidance]
    assert all(settings <= {"guidance_scale", "classifier_scale", "clip_scale"} for settings in read)
    found = [(one.name, one.scale) for one in guidance if one.name not in ("none", "direct")]
    assert found == [(kind.name, scale) for kind in SCALED for scale in kind.swept]


def test_a_scale_alone_leaves_the_other_settings_to_the_model(tiny_package: Path) -> None:
    """So it can be a scale that they exclude."""
    package = ModelPackage.load(tiny_package)
    package.card = replace(package.card, defaults=Defaults(4, {"guidance_scale": 0.5, "cfg_plus_plus": True}))
    with pytest.raises(InvalidRequest, match="cfg_plus_plus"):
        package.condition([PROMPT], Guidance.of("classifier_free").at(1.5))
