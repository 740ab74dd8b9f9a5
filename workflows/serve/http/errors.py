"""The answers to failed requests: one table from error classes to HTTP statuses, and the bodies in OpenAI's shape.

Only the HTTP front turns errors into statuses. An error outside the table is our own bug: the client gets status 500
without a trace, and the trace goes to the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

from pydantic import BaseModel
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from starlette.requests import ClientDisconnect

from diffusion_core import errors as core
from diffusion_core.errors import RaverseError
from workflows import errors as work
from workflows.config.faults import describe

CLIENT_LEFT: Final = 499

STATUS: Final[Mapping[type[Exception], int]] = {
    # The request is at fault.
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
    # The same request may succeed later.
    work.ClusterUnreachable: 503,
    work.TrackingUnreachable: 503,
    work.EngineStopped: 503,
    DeploymentUnavailableError: 503,
    ReplicaUnavailableError: 503,
    work.DeadlineExceeded: 504,
    RayActorError: 503,
    # The client has left: nobody reads this status, but it is logged and counted.
    RequestCancelledError: CLIENT_LEFT,
    ClientDisconnect: CLIENT_LEFT,
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
    """The status of the nearest base class that the table holds; 500 if it holds none."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def unwrap(error: BaseException) -> BaseException:
    """Removes Ray's wrapping from an error that another process raised."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def error_answer(error: BaseException) -> tuple[int, ErrorAnswer, dict[str, str]]:
    """Returns status, body and headers for an error.

    An error of the client comes with its message. An error of ours comes with its class only, since its message may
    name files and addresses.
    """
    cause = unwrap(error)
    status = status_of(cause)
    if isinstance(cause, RaverseError) and (status < 500 or status == TOO_LATE):
        message = str(cause)
    elif status == 500:
        message = f"the service failed ({type(cause).__name__}): its log holds the details"
    else:
        message = "the service is busy or restarting: try again"
    detail = ErrorDetail(message=message, type=_type(status), param=getattr(cause, "param", None), code=_code(cause))
    return status, ErrorAnswer(error=detail), _headers(cause, status)


def invalid_fields_answer(faults: Sequence[Mapping[str, Any]]) -> ErrorAnswer:
    """The body for a request that breaks the schema: the message names every fault, `param` the first field.

    Args:
        faults: pydantic's list of errors.
    """
    messages = list(dict.fromkeys(_messages(faults)))
    param = next((name for name, _ in messages if name), None)
    message = "; ".join(f"{name}: {text}" if name else text for name, text in messages)
    code = "unknown_parameter" if faults[0]["type"] == "extra_forbidden" else "invalid_value"
    return ErrorAnswer(error=ErrorDetail(message=message, type=_type(400), param=param, code=code))


def _messages(faults: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yields the field and the message of each fault; the field is empty where the whole body is at fault."""
    for fault in faults:
        # A path begins with "body" and the field; the rest are members of a union.
        path = [part for part in fault["loc"] if part != "body"]
        name = str(path[0]) if path and isinstance(path[0], str) else ""
        if fault["type"] == "extra_forbidden":
            yield name, "unknown field"
        elif fault["type"] == "missing":
            yield name, "missing" if name else "the body is missing: send JSON with `Content-Type: application/json`"
        elif not name:
            yield name, f"the body is no JSON object ({fault['msg']}): send JSON with `Content-Type: application/json`"
        else:
            yield name, describe(fault)


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
