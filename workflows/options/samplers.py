"""The samplers and spacings by name.

A new sampler is a function of `diffusion_core.sampler` that returns a `SamplerPlan`, and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final

from workflows.errors import InvalidRequest

if TYPE_CHECKING:
    from diffusion_core.sampler import SamplerPlan
    from diffusion_core.schedule import NoiseSchedule

MakePlan: TypeAlias = Callable[["NoiseSchedule", Sequence[int], float], "SamplerPlan"]
"""Makes a table from a schedule, descending levels that end in 0, and eta."""


@final
@dataclass(frozen=True)
class Sampler:
    """One sampler.

    Attributes:
        name: its name in every interface.
        title: its name on pages.
        plan: makes its table of coefficients.
        takes_eta: whether it reads `eta`.
        check_steps: steps with which the service is checked after a job; 0: it is not checked with this sampler.
    """

    name: str
    title: str
    plan: MakePlan
    takes_eta: bool = False
    check_steps: int = 0


def _ddim(schedule: NoiseSchedule, levels: Sequence[int], eta: float) -> SamplerPlan:
    from diffusion_core.sampler import ddim

    return ddim(schedule, levels, eta)


def _ddpm(schedule: NoiseSchedule, levels: Sequence[int], _eta: float) -> SamplerPlan:
    from diffusion_core.sampler import ddpm

    return ddpm(schedule, levels)


def _dpm_solver(schedule: NoiseSchedule, levels: Sequence[int], _eta: float) -> SamplerPlan:
    from diffusion_core.sampler import dpm_solver

    return dpm_solver(schedule, levels)


SAMPLERS: Final[Mapping[str, Sampler]] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", "DDIM", _ddim, takes_eta=True, check_steps=20),
        # On fewer steps DDPM shows too little of the data's spread.
        Sampler("ddpm", "DDPM", _ddpm, check_steps=50),
        Sampler("dpm_solver", "DPM-Solver++", _dpm_solver),
    )
}
"""The samplers by name; the first is the default."""
ETA_READERS: Final = " or ".join(sampler.name for sampler in SAMPLERS.values() if sampler.takes_eta)
"""Those that read `eta`, for messages and descriptions."""
DEFAULT_SAMPLER: Final = next(iter(SAMPLERS))
SPACINGS: Final = ("trailing", "leading", "linspace", "quadratic")
"""Names of the functions of `diffusion_core.spacing`; the first is the default."""

if TYPE_CHECKING:
    SamplerName: TypeAlias = str
    SpacingName: TypeAlias = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
    SpacingName = Literal[SPACINGS]


def useless_eta(name: str) -> str:
    """What to say of an eta for a sampler that has none."""
    return f"has no effect with sampler {name!r}: leave it out, or take {ETA_READERS}"


def checked_sampler(name: str, eta: float = 0.0) -> Sampler:
    """The sampler of this name.

    Raises:
        InvalidRequest: an unknown name, or an eta for a sampler that has none; names the field.
    """
    if name not in SAMPLERS:
        raise InvalidRequest(f"unknown sampler {name!r}: give one of {', '.join(SAMPLERS)}", "sampler")
    if eta != 0.0 and not SAMPLERS[name].takes_eta:
        raise InvalidRequest(f"eta: {useless_eta(name)}", "eta")
    return SAMPLERS[name]


def checked_spacing(name: str, known: Sequence[str] = SPACINGS) -> str:
    """The name itself.

    Raises:
        InvalidRequest: an unknown name.
    """
    if name not in known:
        raise InvalidRequest(f"unknown spacing {name!r}: give one of {', '.join(known)}", "spacing")
    return name


def make_plan(
    schedule: NoiseSchedule, sampler: str, num_steps: int, eta: float = 0.0, spacing: str = SPACINGS[0]
) -> SamplerPlan:
    """The table of a sampler by name.

    Args:
        schedule: of the denoiser.
        sampler: a name of `SAMPLERS`.
        num_steps: steps.
        eta: of a sampler that takes it, in [0, 1].
        spacing: which levels are visited, a name of `SPACINGS`.

    Raises:
        InvalidRequest: an unknown sampler or spacing, or an eta for one that has none.
        InvalidLevels: more steps than the schedule has levels.
    """
    from diffusion_core import spacing as spacings

    levels = getattr(spacings, checked_spacing(spacing))(schedule, num_steps)
    return checked_sampler(sampler, eta).plan(schedule, levels, eta)
