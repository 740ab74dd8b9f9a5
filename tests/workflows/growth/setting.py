"""A setting of guidance that a wrapper of the core reads already: dynamic thresholding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tests.workflows.growth.edits import above, instead

NAME = "setting of guidance"
MOST_FILES = 2
EDITS = (
    above(
        "workflows/options/guidance.py",
        """        Setting(
            "apg_eta",
""",
        """        Setting(
            "dynamic_threshold",
            "Divides x0 by this quantile of its size where that is above 1 (dynamic thresholding): 0 not.",
            high=1.0,
            neutral=0.0,
        ),
""",
    ),
    instead(
        "workflows/options/guidance.py",
        """            settings=("guidance_interval", "guidance_rescale", "apg_eta", "apg_norm", "cfg_plus_plus"),
""",
        """            settings=(
                "guidance_interval",
                "guidance_rescale",
                "dynamic_threshold",
                "apg_eta",
                "apg_norm",
                "cfg_plus_plus",
            ),
""",
    ),
)


def check(package: Path, folder: Path) -> None:
    """Every interface offers the setting, and it changes the same picture in each."""
    import numpy as np
    import pandas as pd

    from tests.workflows.growth.interfaces import PROMPT, Service, help_of, raverse
    from workflows.config.load import config_keys, load_config
    from workflows.data.png import decode_png
    from workflows.options.guidance import Guidance
    from workflows.release.pyfunc import PackagedModel

    # The command line.
    assert "--dynamic-threshold" in help_of("sample")
    words = ("sample", PROMPT, "--model", str(package), "--scale", "8", "--zoom", "1", "--seed", "7")
    for quantile in ("0", "1"):
        raverse(*words, "--dynamic-threshold", quantile, "--out", str(folder / f"{quantile}.png"))
    plain, changed = (decode_png((folder / f"{quantile}.png").read_bytes()) for quantile in ("0", "1"))
    assert not np.array_equal(plain, changed)

    # The configuration.
    assert "evaluate.dynamic_threshold" in config_keys()
    config = load_config("digits", ["evaluate.dynamic_threshold=1.0"])
    guidance = Guidance.of("classifier_free").over(config.evaluate.guidance_settings)
    assert guidance.settings["dynamic_threshold"] == 1.0

    # The registered model.
    model = PackagedModel()
    model.load_context(SimpleNamespace(artifacts={"package": str(package)}))
    asked = {"guidance_scale": 8.0, "dynamic_threshold": 1.0, "seed": 7}
    drawn = model.predict(None, pd.DataFrame({"prompt": [PROMPT]}), asked)
    assert np.array_equal(decode_png(drawn["image"][0]), changed)

    # The service.
    service = Service(package)
    assert service.field("dynamic_threshold")["anyOf"][0]["maximum"] == 1.0
    assert 'data-setting="dynamic_threshold"' in service.page
    pixels, settings = service.draw(prompt=PROMPT, guidance_scale=8.0, dynamic_threshold=1.0, seed=7)
    assert settings["dynamic_threshold"] == 1.0
    assert np.array_equal(pixels, changed)
    service.close()
