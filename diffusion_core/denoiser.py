"""A denoiser answers, for noisy rows at their own levels, with a `Prediction`.

Guidance wrappers take a denoiser and are one; `NetworkDenoiser` is the one at the bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidCondition, InvalidGuidance, InvalidPrediction, InvalidShape
from diffusion_core.prediction import Parameterization, Prediction
from diffusion_core.schedule import NoiseSchedule
from diffusion_core.types import Data, Levels, Rows


@runtime_checkable
class Network(Protocol):
    """Any `torch.nn.Module` of this signature: output `(b, c, ...)`, or `(b, 2c, ...)` with a learned variance."""

    def __call__(self, x: Data, level: Rows, condition: Condition | None) -> Data:
        """Predicts x0, eps or v of each row."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """Row i of the answer depends on row i of the arguments alone."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The levels that it understands."""
        ...

    @property
    def settings(self) -> Mapping[str, float]:
        """Names of `Condition.settings` that it reads, with the values for rows that do not say."""
        ...

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """Predicts x0 and eps of each row.

        Args:
            x_t: noisy data `(b, ...)`.
            level: of each row, `(b,)`, by custom on the CPU.
            condition: `b` rows; None: the null condition for all.
        """
        ...


@final
class NetworkDenoiser:
    """Reads a network's output as x0, eps or v.

    Args:
        network: called with the original level, whatever list of levels a sampler visits.
        schedule: the noise schedule that it was trained with.
        parameterization: what it predicts.
        learned_variance: its output has twice the channels; the second half is `2 fraction - 1`.
        buckets: batch sizes that the network may see: smaller batches are padded up to the next one, larger
            ones are cut, so that compiled graphs see few shapes. Empty: any size.
        autocast: computes the network in this type (`torch.bfloat16`); None: in its own.

    Raises:
        InvalidPrediction: eps-prediction with a schedule of zero terminal SNR.
    """

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        parameterization: Parameterization,
        *,
        learned_variance: bool = False,
        buckets: Sequence[int] = (),
        autocast: torch.dtype | None = None,
    ) -> None:
        if parameterization == "eps" and float(schedule.alpha_bar[-1]) == 0.0:
            raise InvalidPrediction("eps-prediction is undefined at alpha_bar = 0 (zero terminal SNR): predict v or x0")
        self.network, self.schedule, self.parameterization = network, schedule, parameterization
        self._learned_variance, self._buckets, self._autocast = learned_variance, tuple(sorted(buckets)), autocast

    @property
    def settings(self) -> Mapping[str, float]:
        """None of its own."""
        return {}

    def __call__(self, x_t: Data, level: Levels, condition: Condition | None) -> Prediction:
        """See `Denoiser.__call__`."""
        check_rows(x_t, level, condition)
        alpha_bar = self.schedule.at(level)
        outputs = [self._forward(x_t, level, condition, rows) for rows in _slices(len(x_t), self._buckets)]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        fraction = None
        if self._learned_variance:
            output, raw = output.chunk(2, dim=1)
            fraction = (raw + 1.0) / 2.0
        prediction = Prediction.from_output(self.parameterization, x_t, output, alpha_bar)
        if fraction is None:
            return prediction
        return Prediction(x_t, prediction.x0, prediction.eps, alpha_bar, variance_fraction=fraction)

    def _forward(self, x_t: Data, level: Levels, condition: Condition | None, rows: slice) -> Tensor:
        wanted = rows.stop - rows.start
        size = next((bucket for bucket in self._buckets if bucket >= wanted), wanted)
        if wanted == len(x_t) and size == wanted:
            x, times, part = x_t, level, condition
        else:
            index = torch.arange(rows.start, rows.start + size).clamp(max=rows.stop - 1)
            x, times = x_t[index.to(x_t.device)], level[index.to(level.device)]
            part = None if condition is None else condition.rows(index)
        time_type = torch.float64 if x.dtype == torch.float64 else torch.float32
        with self._precision(x):
            output = self.network(x, times.to(x.device, time_type), part)
        return (output if size == wanted else output[:wanted]).to(x_t.dtype)

    def _precision(self, x: Tensor) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self._autocast)


def check_rows(x_t: Data, level: Levels, condition: Condition | None) -> None:
    """Refuses data, levels and condition of different row counts.

    Raises:
        InvalidShape: levels are not `(b,)`, or data is not real-valued.
        InvalidCondition: the condition has other than b rows.
    """
    if not x_t.is_floating_point() or x_t.dim() < 2:
        raise InvalidShape(f"found x_t {x_t.dtype} {tuple(x_t.shape)}, wanted real numbers of shape (b, ...)")
    if level.shape != (len(x_t),):
        raise InvalidShape(f"found levels of shape {tuple(level.shape)}, wanted one per row: ({len(x_t)},)")
    if condition is not None and condition.num_rows != len(x_t):
        raise InvalidCondition(f"the condition has {condition.num_rows} rows for {len(x_t)} rows of data")


def check_settings(denoiser: Denoiser, condition: Condition | None) -> None:
    """Refuses a row that asks for guidance which no wrapper offers.

    Raises:
        InvalidGuidance: names the setting, the rows that ask, and the settings on offer.
    """
    for name, value in ({} if condition is None else condition.settings).items():
        asked = ~value.isnan()
        if name not in denoiser.settings and bool(asked.any()):
            rows = asked.nonzero().flatten().tolist()
            offered = ", ".join(sorted(denoiser.settings)) or "none"
            raise InvalidGuidance(
                f"rows {rows} ask for {name}, which this denoiser does not offer ({offered}): wrap it in that guidance"
            )


def _slices(num_rows: int, buckets: tuple[int, ...]) -> list[slice]:
    size = buckets[-1] if buckets else max(num_rows, 1)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)] or [slice(0, 0)]
