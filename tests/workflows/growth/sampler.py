"""A sampler: DEIS of second order, where x0 is linear in sigma between two steps."""

from __future__ import annotations

from pathlib import Path

from tests.workflows.growth.edits import above, below

NAME = "sampler"
MOST_FILES = 3
EDITS = (
    above(
        "diffusion_core/sampler.py",
        "def step(\n",
        '''def deis(schedule: NoiseSchedule, levels: Sequence[int]) -> SamplerPlan:
    """DEIS of second order: x0 is linear in sigma = sqrt((1 - ab) / ab); first and last step are of first order.

    With r = sigma_s / sigma_t, the x0 used is x0 + w (x0 - x0_previous), where
    w = (sigma_s log(1 / r) - sigma_t (1 - r)) / (sigma_t - sigma_previous).

    Args:
        schedule: gives alpha_bar.
        levels: strictly descending, ending in 0.

    Raises:
        InvalidLevels: the list is not such a list.

    References:
        Zhang & Chen, Fast Sampling of Diffusion Models with Exponential Integrator (2023).
    """
    visited, before, after = _visited(schedule, levels, None)
    sigma = ((1.0 - _table(before, after)) / _table(before, after)).sqrt()
    previous, sigma_t, sigma_s = sigma[:-2], sigma[1:-1], sigma[2:]
    ratio = sigma_s / sigma_t
    weight = torch.zeros_like(after)
    weight[1:] = (-sigma_s * ratio.log() - sigma_t * (1.0 - ratio)) / (sigma_t - previous)
    weight[-1] = 0.0
    gain, zero = after.sqrt(), torch.zeros_like(after)
    return SamplerPlan(visited, _table(before, after), gain * (1 + weight), (1 - after).sqrt(), -gain * weight, zero)


''',
    ),
    above(
        "workflows/options/samplers.py",
        "SAMPLERS: Final",
        """def _deis(schedule: NoiseSchedule, levels: Sequence[int], _eta: float) -> SamplerPlan:
    from diffusion_core.sampler import deis

    return deis(schedule, levels)


""",
    ),
    below(
        "workflows/options/samplers.py",
        """        Sampler("dpm_solver", "DPM-Solver++", _dpm_solver),
""",
        """        Sampler("deis", "DEIS", _deis),
""",
    ),
)


def check(package: Path, folder: Path) -> None:
    """Every interface offers the sampler; it draws what DDIM does with many steps, and is more accurate."""
    import numpy as np
    import torch

    from diffusion_core import GaussianMixture, NoiseSchedule, OracleDenoiser, ddim, sample, trailing
    from diffusion_core.sampler import deis
    from tests.workflows.growth.interfaces import PROMPT, Service, help_of, raverse
    from workflows.config.load import load_config
    from workflows.data.png import decode_png

    mixture = GaussianMixture(
        weights=torch.tensor([0.5, 0.5], dtype=torch.float64),
        means=torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64),
        deviations=torch.tensor([0.1, 0.2], dtype=torch.float64),
        classes=torch.tensor([0, 1]),
    )
    schedule = NoiseSchedule.cosine(1000)
    denoiser = OracleDenoiser(mixture, schedule)
    seeds = list(range(16))
    exact = sample(denoiser, ddim(schedule, trailing(schedule, 400)), seeds=seeds, shape=(2,))
    first, second = (
        float((sample(denoiser, plan(schedule, trailing(schedule, 50)), seeds=seeds, shape=(2,)) - exact).abs().mean())
        for plan in (ddim, deis)
    )
    assert second < first

    # The configuration and the command line.
    assert load_config("digits", ["sweep.samplers=[deis]"]).sweep.samplers == ("deis",)
    assert "dpm_solver, deis." in help_of("sample")
    words = ("sample", PROMPT, "--model", str(package), "--sampler", "deis", "--zoom", "1", "--seed", "7")
    raverse(*words, "--out", str(folder / "picture.png"))
    picture = decode_png((folder / "picture.png").read_bytes())

    # The service.
    service = Service(package)
    assert "deis" in service.field("sampler")["enum"]
    assert '<option value="deis">DEIS</option>' in service.page
    pixels, settings = service.draw(prompt=PROMPT, sampler="deis", seed=7)
    assert settings["sampler"] == "deis"
    assert np.array_equal(pixels, picture)
    assert not np.array_equal(service.draw(prompt=PROMPT, sampler="ddim", seed=7)[0], picture)
    service.close()
