"""A kind of guidance that has a scale: away from what the model predicts of a blurred picture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.workflows.growth.edits import above, below, instead

NAME = "kind of guidance"
MOST_FILES = 3
EDITS = (
    above(
        "diffusion_core/guidance.py",
        "@final\nclass Thresholding:\n",
        '''@final
class BlurGuidance:
    """Extrapolates away from the x0 that is predicted where x0 is blurred: `x0 + s (x0 - x0_blurred)`.

    Settings:
        blur_scale: s; rows with 0 cost nothing more, others one more evaluation.

    Args:
        denoiser: what is guided.

    References:
        Hong et al., Improving Sample Quality of Diffusion Models Using Self-Attention Guidance (2023), section 4.1.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        """That of the guided denoiser."""
        return self.denoiser.schedule

    @property
    def settings(self) -> Mapping[str, float]:
        """See the class."""
        return {**self.denoiser.settings, "blur_scale": 0.0}

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """See `Denoiser.__call__`."""
        prediction = self.denoiser(x_t, level, condition)
        scale = torch.zeros(len(x_t)) if condition is None else condition.setting("blur_scale", 0.0)
        rows = (scale != 0).nonzero().flatten()
        if condition is None or len(rows) == 0:
            return prediction
        index, here = rows.to(x_t.device), level[rows.to(level.device)]
        sharp = prediction.rows(index)
        neighbours = torch.stack([sharp.x0.roll(shift, -1) for shift in (-1, 0, 1)])
        blurred = self.denoiser(self.schedule.q_sample(neighbours.mean(0), here, sharp.eps), here, condition.rows(rows))
        x0 = sharp.x0 + _times(scale[rows], sharp.x0 - blurred.x0)
        return prediction.with_rows(index, sharp.with_x0(x0))


''',
    ),
    below(
        "workflows/options/guidance.py",
        """        Setting("clip_scale", "Scale of CLIP's gradient.", neutral=0.0),
""",
        """        Setting("blur_scale", "Scale of blur guidance; 0 is the plain conditional model.", neutral=0.0),
""",
    ),
    above(
        "workflows/options/guidance.py",
        """        GuidanceKind(
            "classifier",
""",
        """        GuidanceKind(
            "blur",
            "blur",
            "extrapolated away from a blurred picture",
            "condition",
            sees_prompt=True,
            scale="blur_scale",
            default=1.0,
            swept=(0.0, 0.5, 1.0, 2.0),
            cost=lambda setting: 1.0 + _second_pass(setting) if setting("blur_scale", 0.0) != 0.0 else 0.0,
        ),
""",
    ),
    instead(
        "workflows/model/parts.py",
        "import ClassifierFreeGuidance, GradientGuidance\n",
        "import BlurGuidance, ClassifierFreeGuidance, GradientGuidance\n",
    ),
    instead(
        "workflows/model/parts.py",
        "    denoiser: Denoiser = ClassifierFreeGuidance(network)\n",
        "    denoiser: Denoiser = BlurGuidance(ClassifierFreeGuidance(network))\n",
    ),
)


def check(package: Path, folder: Path) -> None:
    """Every interface offers the kind, and its scale changes a picture."""
    import numpy as np
    import pandas as pd

    from tests.workflows.growth.interfaces import PROMPT, Service, help_of, raverse
    from workflows.config.load import config_keys, load_config
    from workflows.data.png import decode_png
    from workflows.evaluate.jobs import jobs_by_kind
    from workflows.evaluate.prompts import Prompts
    from workflows.package.files import PackageCard
    from workflows.release.pyfunc import PackagedModel, default_params
    from workflows.sweep.run import plan_tables

    # The command line.
    assert "direct, classifier_free, blur," in help_of("sample") and "--blur-scale" in help_of("sample")
    sample = ("sample", PROMPT, "--model", str(package), "--guidance", "blur", "--zoom", "1", "--seed", "7")
    for scale in ("0", "4"):
        raverse(*sample, "--blur-scale", scale, "--out", str(folder / f"{scale}.png"))
    plain, changed = (decode_png((folder / f"{scale}.png").read_bytes()) for scale in ("0", "4"))
    assert not np.array_equal(plain, changed)

    # The configuration, and what evaluation and sweep draw by it.
    assert {"evaluate.blur_scale", "sweep.blur_scales"} <= {*config_keys()}
    config = load_config("digits", ["evaluate.blur_scale=4", "sweep.blur_scales=[1,4]"])
    zero = np.zeros(1, np.int64)
    prompts = Prompts((PROMPT,), zero, zero[:, None], (7,), np.zeros(1, np.bool_))
    assert jobs_by_kind(config.evaluate, prompts, prompts, prompts)["blur"].guidance.settings == {"blur_scale": 4.0}
    scales = [job.guidance.scale for job in jobs_of(plan_tables(config.sweep, prompts)) if job.guidance.name == "blur"]
    assert scales == [1.0, 4.0]

    # The registered model.
    assert default_params(PackageCard.load(package))["blur_scale"] == 1.0
    model = PackagedModel()
    model.load_context(SimpleNamespace(artifacts={"package": str(package)}))
    asked = {"guidance": "blur", "blur_scale": 4.0, "seed": 7}
    drawn = model.predict(None, pd.DataFrame({"prompt": [PROMPT]}), asked)
    assert np.array_equal(decode_png(drawn["image"][0]), changed)

    # The service.
    service = Service(package)
    assert "blur" in service.field("guidance")["examples"]
    assert '"blur": {' in service.page
    for scale, wanted in ((0.0, plain), (4.0, changed)):
        pixels, settings = service.draw(prompt=PROMPT, guidance="blur", guidance_scale=scale, seed=7)
        assert np.array_equal(pixels, wanted)
        assert (settings["guidance"], settings["guidance_scale"]) == ("blur", scale)
    assert np.array_equal(service.draw(prompt=PROMPT, guidance="direct", seed=7)[0], plain)
    service.close()


def jobs_of(tables: dict[str, list[Any]]) -> list[Any]:
    return [point.job for points in tables.values() for point in points]
