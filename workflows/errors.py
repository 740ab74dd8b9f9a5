"""What can go wrong in the workflows; every class is a `RaverseError` (see `diffusion_core.errors`).

    RaverseError
    ├── InvalidConfig       (ValueError)         an unknown key or a value out of range
    ├── InvalidData         (ValueError)         a data source that cannot be used
    ├── InvalidClip         (ValueError)         towers that do not load or do not fit
    ├── InvalidCheckpoint   (ValueError)         another program's checkpoint that cannot be used
    ├── MissingArtifact     (FileNotFoundError)  a stage's input has not been made yet
    ├── StageFailed         (RuntimeError)       a stage ended without its artifact
    ├── ClusterUnreachable  (ConnectionError)    no Ray at the address
    ├── PreflightFailed     (RuntimeError)       a machine or cluster lacks what the job needs
    ├── TrackingUnreachable (ConnectionError)    no MLflow at the URI
    ├── ModelNotFound       (LookupError)        no such model, version or alias
    ├── PromotionRefused    (RuntimeError)       the gate says that the challenger is not good enough
    ├── PromotionConflict   (RuntimeError)       another promotion moved the alias meanwhile
    ├── StorageUnwritable   (OSError)            a folder that is full or read-only
    ├── AddressInUse        (OSError)            the port is taken
    ├── InvalidRequest      (ValueError)         an HTTP request that cannot be served; names the field
    ├── Overloaded          (RuntimeError)       the queue is full; carries Retry-After seconds
    ├── EngineStopped       (RuntimeError)       a replica's engine has ended; another replica can go on
    ├── DeadlineExceeded    (TimeoutError)       a picture that was not done when its client wanted it
    └── Unauthorized        (PermissionError)    no API key, or an unknown one

`workflows/serve/http/errors.py` maps each to an HTTP status; the CLI prints one line and exits with 1.
"""

from __future__ import annotations

from diffusion_core.errors import RaverseError


class InvalidConfig(RaverseError, ValueError):
    """An unknown configuration key, or a value out of range."""


class InvalidData(RaverseError, ValueError):
    """A data source that is missing, empty or malformed."""


class InvalidClip(RaverseError, ValueError):
    """CLIP towers that do not load, or that do not offer what is asked of them."""


class InvalidCheckpoint(RaverseError, ValueError):
    """A checkpoint of another program that is of an unsupported kind, incomplete, or unsafe to load."""


class MissingArtifact(RaverseError, FileNotFoundError):
    """A stage's input that has not been made yet."""


class StageFailed(RaverseError, RuntimeError):
    """A stage that ended without its artifact."""


class ClusterUnreachable(RaverseError, ConnectionError):
    """No Ray cluster answers at the address."""


class PreflightFailed(RaverseError, RuntimeError):
    """A machine or a cluster lacks what the job needs; told before the job begins."""


class TrackingUnreachable(RaverseError, ConnectionError):
    """The MLflow store cannot be opened."""


class ModelNotFound(RaverseError, LookupError):
    """No such registered model, version or alias; `param` is the request's field that names it, if one does."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class PromotionRefused(RaverseError, RuntimeError):
    """The gate found the challenger worse than the champion."""


class PromotionConflict(RaverseError, RuntimeError):
    """Another promotion moved the alias while this one compared."""


class StorageUnwritable(RaverseError, OSError):
    """A folder that is full, missing or read-only."""


class AddressInUse(RaverseError, OSError):
    """The HTTP port is taken by another process."""


class InvalidRequest(RaverseError, ValueError):
    """A request that cannot be served; `param` is the name of the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    @property
    def reason(self) -> str:
        """The message without the name of the field, for callers that name it in another way."""
        return str(self).removeprefix(f"{self.param}: ")

    def __str__(self) -> str:
        return str(self.args[0])


class Overloaded(RaverseError, RuntimeError):
    """The queue is full; `retry_after` is the computed number of seconds to wait."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class EngineStopped(RaverseError, RuntimeError):
    """The engine of a replica has ended; Ray Serve replaces the replica, and the client may send the request again."""


class DeadlineExceeded(RaverseError, TimeoutError):
    """A picture that was not done when its client wanted it."""


class Unauthorized(RaverseError, PermissionError):
    """A request without an API key, or with an unknown one."""
