"""What the service answers when something is wrong: one table from error classes to HTTP statuses.

Only the ingress turns errors into HTTP. An error that is in no row of the table is our own bug: the client
is told so, without a trace, and the trace goes to the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

from pydantic import BaseModel
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from diffusion_core import errors as core
from diffusion_core.errors import RaverseError
from workflows import errors as work

STATUS: Final[Mapping[type[Exception], int]] = {
    # The client asked for something that cannot be done.
    work.InvalidRequest: 400,
    work.Unauthorized: 401,
    core.InvalidLevels: 400,
    core.InvalidPlan: 400,
    core.InvalidGuidance: 400,
    core.InvalidSeed: 400,
    work.ModelNotFound: 404,
    core.NonFinite: 422,
    work.Overloaded: 429,
    BackPressureError: 429,
    # The model or the service is at fault.
    RaverseError: 500,
    core.InvalidSchedule: 500,
    core.InvalidPrediction: 500,
    core.InvalidCondition: 500,
    core.InvalidShape: 500,
    core.InvalidBundle: 500,
    work.InvalidConfig: 500,
    work.InvalidData: 500,
    work.InvalidClip: 500,
    work.InvalidCheckpoint: 500,
    work.MissingArtifact: 500,
    work.StageFailed: 500,
    work.PreflightFailed: 500,
    work.PromotionRefused: 500,
    work.PromotionConflict: 500,
    work.StorageUnwritable: 500,
    work.AddressInUse: 500,
    # It may be mended by itself.
    work.ClusterUnreachable: 503,
    work.TrackingUnreachable: 503,
    work.EngineStopped: 503,
    DeploymentUnavailableError: 503,
    ReplicaUnavailableError: 503,
    work.DeadlineExceeded: 504,
    RayActorError: 503,
}

_DEFAULT_RETRY_SECONDS: Final = 1.0
TOO_LATE: Final = 504


@final
class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


@final
class ErrorAnswer(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


def status_of(error: BaseException) -> int:
    """The status of the nearest class of the error that the table holds, 500 if it holds none."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def unwrapped(error: BaseException) -> BaseException:
    """The error that another process raised, without Ray's wrapping."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def answer_to(error: BaseException) -> tuple[int, ErrorAnswer, dict[str, str]]:
    """Status, body and headers for an error.

    What the client can mend is told in full; of our own faults it learns the class only, since their
    messages name files and addresses.
    """
    cause = unwrapped(error)
    status = status_of(cause)
    if isinstance(cause, RaverseError) and (status < 500 or status == TOO_LATE):
        message = str(cause)
    elif status == 500:
        message = f"the service failed ({type(cause).__name__}): its log holds the details"
    else:
        message = "the service is busy or restarting: try again"
    detail = ErrorDetail(message=message, type=_type(status), param=getattr(cause, "param", None), code=_code(cause))
    return status, ErrorAnswer(error=detail), _headers(cause, status)


def invalid_fields(faults: Sequence[Mapping[str, Any]]) -> ErrorAnswer:
    """The body for a request that breaks the schema: every fault told, `param` names the first field.

    Args:
        faults: as pydantic lists them.
    """
    told = list(dict.fromkeys(_tell(faults)))
    param = next((name for name, _ in told if name), None)
    message = "; ".join(f"{name}: {text}" if name else text for name, text in told)
    code = "unknown_parameter" if faults[0]["type"] == "extra_forbidden" else "invalid_value"
    return ErrorAnswer(error=ErrorDetail(message=message, type=_type(400), param=param, code=code))


def _tell(faults: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for fault in faults:
        # The first place is "body"; the second is the field, the rest are members of a union.
        place = [part for part in fault["loc"] if part != "body"]
        name = str(place[0]) if place and isinstance(place[0], str) else ""
        if fault["type"] == "extra_forbidden":
            yield name, "unknown field"
        elif fault["type"] == "missing":
            yield name, "missing" if name else "the body is missing: send JSON with `Content-Type: application/json`"
        elif not name:
            yield name, f"the body is no JSON object ({fault['msg']}): send JSON with `Content-Type: application/json`"
        else:
            yield name, f"{fault['msg']} (found {_short(fault.get('input'))})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _code(cause: BaseException) -> str | None:
    codes: dict[type[BaseException], str] = {
        work.InvalidRequest: "invalid_value",
        work.Unauthorized: "invalid_api_key",
        work.ModelNotFound: "model_not_found",
        work.DeadlineExceeded: "deadline_exceeded",
        work.Overloaded: "overloaded",
        BackPressureError: "overloaded",
    }
    return next((code for kind, code in codes.items() if isinstance(cause, kind)), None)


def _headers(cause: BaseException, status: int) -> dict[str, str]:
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if status not in (429, 503):
        return {}
    seconds = getattr(cause, "retry_after", _DEFAULT_RETRY_SECONDS)
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
