"""How a checkpoint's own scheduler samples, as plans: the conventions of diffusers in the core's terms.

Level t is the checkpoint's time t - 1. diffusers stops at alpha_bar_1 where `set_alpha_to_one` is false, steps of DDIM
go to time t - T // n whatever time comes next, and DPM-Solver++ has other "leading" and "linspace" times and gives
the last time of a schedule of zero terminal SNR alpha_bar = 2^-24. A plan says all of that in numbers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, final, get_args

import numpy as np
import torch

from diffusion_core.errors import InvalidPlan
from diffusion_core.sampler import SamplerPlan, Variance, ddim, ddpm, dpm_solver
from diffusion_core.schedule import NoiseSchedule
from workflows.options.samplers import checked_sampler, checked_spacing

Spacing: TypeAlias = Literal["leading", "trailing", "linspace"]
SAMPLING_FILE: Final = "sampling.json"
_FEW: Final = 15
NEARLY_ZERO: Final = 2.0**-24
"""What DPM-Solver++ of diffusers takes for alpha_bar at the end of a schedule of zero terminal SNR."""


@final
@dataclass(frozen=True)
class Visits:
    """Which times a sampler visits, and where it ends.

    Attributes:
        spacing: name of the rule.
        offset: `steps_offset`.
        to_clean: whether the last step goes to alpha_bar = 1, else to that of level 1.
        last_order: of DPM-Solver++'s last step; 0: by diffusers' rule, second from 15 steps on.
        last_time: times are below this one; None: T.
    """

    spacing: Spacing
    offset: int = 0
    to_clean: bool = True
    last_order: Literal[0, 1, 2] = 1
    last_time: int | None = None


@final
@dataclass(frozen=True)
class Sampling:
    """The conventions of one checkpoint.

    Attributes:
        num_times: T of the checkpoint.
        zero_terminal: whether its noise ends at alpha_bar = 0; then the schedule has one more level than times.
        ddim: of DDIM.
        ddpm: of DDPM.
        dpm_solver: of DPM-Solver++(2M).
        default: the sampler of the checkpoint's own scheduler, or the nearest there is.
        clip: bound of the predicted x0; 0: none.
        variance: of DDPM.
    """

    num_times: int
    zero_terminal: bool
    ddim: Visits
    ddpm: Visits
    dpm_solver: Visits
    default: str = "ddim"
    clip: float = 0.0
    variance: Variance = "posterior"

    def save(self, folder: Path) -> None:
        """Writes `sampling.json`."""
        (folder / SAMPLING_FILE).write_text(json.dumps(asdict(self), indent=2))

    @staticmethod
    def load(folder: Path) -> Sampling:
        """Reads `sampling.json`."""
        values: dict[str, Any] = json.loads((folder / SAMPLING_FILE).read_text())
        visits = {name: Visits(**values[name]) for name in ("ddim", "ddpm", "dpm_solver")}
        return Sampling(**(values | visits))

    def plan(
        self, schedule: NoiseSchedule, sampler: str, num_steps: int, eta: float = 0.0, spacing: str | None = None
    ) -> SamplerPlan:
        """The table of a sampler, as diffusers would step.

        Args:
            schedule: of the denoiser.
            sampler: a name of `workflows.options.samplers.SAMPLERS`.
            num_steps: steps.
            eta: of DDIM.
            spacing: instead of the checkpoint's own.

        Raises:
            InvalidRequest: an unknown sampler or spacing, or an eta for one that has none.
            InvalidPlan: steps that this spacing cannot make.
        """
        chosen = checked_sampler(sampler, eta)
        # A sampler that diffusers does not have visits the times of DDIM.
        visits: Visits = getattr(self, sampler, self.ddim)
        if spacing is not None:
            visits = replace(visits, spacing=cast(Spacing, checked_spacing(spacing, get_args(Spacing))))
        if not 1 <= num_steps <= self.num_times:
            raise InvalidPlan(f"found {num_steps} steps, this checkpoint makes 1..{self.num_times}")
        if sampler == "dpm_solver":
            return self._multistep(schedule, visits, num_steps)
        if sampler in ("ddim", "ddpm"):
            return self._one_step(schedule, visits, num_steps, None if sampler == "ddpm" else eta)
        times = self._checked(_times(visits, self.num_times, num_steps), visits)
        return chosen.plan(schedule, self._levels(times, exact=True), eta)

    def _one_step(self, schedule: NoiseSchedule, visits: Visits, num_steps: int, eta: float | None) -> SamplerPlan:
        times = self._checked(_times(visits, self.num_times, num_steps), visits)
        previous = times - self.num_times // num_steps
        end = 1.0 if visits.to_clean else float(schedule.alpha_bar[1])
        targets = [float(schedule.alpha_bar[time + 1]) if time >= 0 else end for time in previous.tolist()]
        levels = self._levels(times, exact=True)
        if eta is None:
            return ddpm(schedule, levels, self.variance)
        if targets[-1] <= float(schedule.alpha_bar[levels[-2]]):
            # From time 0 to alpha_bar_1, where it is already: diffusers makes no step there.
            levels, targets = [*levels[:-2], 0], targets[:-1]
        return ddim(schedule, levels, eta, targets)

    def _multistep(self, schedule: NoiseSchedule, visits: Visits, num_steps: int) -> SamplerPlan:
        times = self._checked(_multistep_times(visits, self.num_times, num_steps), visits)
        levels = self._levels(times, exact=False)
        end = 1.0 if visits.to_clean else float(schedule.alpha_bar[1])
        targets = [*schedule.alpha_bar[levels[1:-1]].tolist(), end]
        second = visits.last_order == 2 or (visits.last_order == 0 and len(times) >= _FEW)
        return dpm_solver(schedule, levels, targets=targets, last_order=2 if second else 1)

    def _checked(self, times: np.ndarray[Any, Any], visits: Visits) -> np.ndarray[Any, Any]:
        falling = len(times) > 0 and bool((np.diff(times) < 0).all())
        if not falling or times[0] >= self.num_times or times[-1] < 0:
            raise InvalidPlan(
                f"{visits.spacing} spacing with offset {visits.offset} has no {len(times)} different times below "
                f"{self.num_times}: ask for fewer steps, or for trailing spacing"
            )
        return times

    def _levels(self, times: np.ndarray[Any, Any], *, exact: bool) -> list[int]:
        """Levels of times, and the final 0; the last time of all has two levels, alpha_bar = 0 being the upper one."""
        levels = [int(time) + 1 for time in times]
        if exact and self.zero_terminal and levels[0] == self.num_times:
            levels[0] += 1
        return [*levels, 0]


def checkpoint_schedule(alphas_cumprod: torch.Tensor, zero_terminal: bool, defined_at_zero: bool) -> NoiseSchedule:
    """The checkpoint's own table as a schedule.

    Args:
        alphas_cumprod: as its scheduler computes it, `(T,)`.
        zero_terminal: whether it ends at 0.
        defined_at_zero: whether what the network predicts means something at alpha_bar = 0 (v and x0 do).
    """
    table = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod.double()])
    if zero_terminal:
        table[-1] = NEARLY_ZERO
        if defined_at_zero:
            table = torch.cat([table, torch.zeros(1, dtype=torch.float64)])
    return NoiseSchedule(table)


def _times(visits: Visits, num_times: int, num_steps: int) -> np.ndarray[Any, Any]:
    """Descending times of DDIM and DDPM (Lin et al., 2023, table 2)."""
    if visits.spacing == "linspace":
        found: np.ndarray[Any, Any] = np.linspace(0, num_times - 1, num_steps).round()[::-1]
    elif visits.spacing == "leading":
        found = (np.arange(num_steps) * (num_times // num_steps))[::-1] + visits.offset
    else:
        found = _falling(num_times, num_times / num_steps, num_steps)
    return found.astype(np.int64)


def _multistep_times(visits: Visits, num_times: int, num_steps: int) -> np.ndarray[Any, Any]:
    """Descending times of DPM-Solver++."""
    last = visits.last_time or num_times
    if visits.spacing == "linspace":
        found: np.ndarray[Any, Any] = np.linspace(0, last - 1, num_steps + 1).round()[::-1][:-1]
    elif visits.spacing == "leading":
        found = (np.arange(num_steps + 1) * (last // (num_steps + 1)))[::-1][:-1] + visits.offset
    else:
        found = _falling(last, num_times / num_steps, num_steps)
    return found.astype(np.int64)


def _falling(first: int, stride: float, count: int) -> np.ndarray[Any, Any]:
    """At most `count` times of trailing spacing: rounding gives `arange` one more for 62 of 1,000 counts."""
    found: np.ndarray[Any, Any] = np.round(np.arange(first, 0, -stride))[:count] - 1
    return found
