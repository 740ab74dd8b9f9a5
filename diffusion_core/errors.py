"""What can go wrong in the core, as one small tree.

    RaverseError
    ├── InvalidSchedule    (ValueError)   betas or alpha_bar that are no noise schedule
    ├── InvalidLevels      (ValueError)   levels not monotone, out of range, not ending in 0
    ├── InvalidPlan        (ValueError)   coefficients or sampler options that break the invariants
    ├── InvalidPrediction  (ValueError)   a parameterization that is undefined at this level
    ├── InvalidCondition   (ValueError)   tokens, mask, pooled or label that do not fit together
    ├── InvalidGuidance    (ValueError)   a row asks for guidance that is not there, or out of range
    ├── InvalidShape       (ValueError)   a tensor of another shape or type than wanted
    ├── InvalidSeed        (ValueError)   a seed that does not fit into 64 bits
    ├── InvalidBundle      (ValueError)   a model folder that is broken, of another format, or tampered with
    └── NonFinite          (ValueError)   NaN or infinity, with the rows at fault

Each message says what was found, what was wanted and what to do. Every class survives pickling, since
Ray carries errors between processes.
"""

from __future__ import annotations


class RaverseError(Exception):
    """The root of every error that raverse raises on purpose."""


class InvalidSchedule(RaverseError, ValueError):
    """Betas or alpha_bar that are no noise schedule."""


class InvalidLevels(RaverseError, ValueError):
    """Levels that are not strictly monotone, leave the schedule, or do not end in 0."""


class InvalidPlan(RaverseError, ValueError):
    """Sampler options out of range, or coefficients that break a plan's invariants."""


class InvalidPrediction(RaverseError, ValueError):
    """A parameterization that is undefined at the level where it was asked for."""


class InvalidCondition(RaverseError, ValueError):
    """Tokens, mask, pooled vector or label that do not fit together or the batch."""


class InvalidGuidance(RaverseError, ValueError):
    """Guidance that a row asks for and the denoiser does not offer, or a scale out of range."""


class InvalidShape(RaverseError, ValueError):
    """A tensor of another shape or type than wanted."""


class InvalidSeed(RaverseError, ValueError):
    """A seed that is no integer of 64 bits."""


class InvalidBundle(RaverseError, ValueError):
    """A model folder that is incomplete, of an unknown format version, or not what its hash says."""


class NonFinite(RaverseError, ValueError):
    """NaN or infinity; `rows` names the batch rows at fault."""

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message, rows)
        self.rows = rows

    def __str__(self) -> str:
        return str(self.args[0])
