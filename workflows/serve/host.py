"""Runs an application on the present Ray session, and removes it again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import httpx
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.schema import DeploymentStatus

from workflows.config.schema import ServeConfig
from workflows.errors import AddressInUse, StageFailed
from workflows.runtime.preflight import check_free

_PROBE_SECONDS: Final = 5.0


@contextlib.contextmanager
def hosted(config: ServeConfig, application: Application, name: str, route_prefix: str = "/") -> Iterator[str]:
    """Serves the application for the duration of the block, and yields its URL.

    If Ray Serve runs on the cluster already, it is used and left running.

    Args:
        config: host and port.
        application: the application.
        name: the application's name in Ray Serve.
        route_prefix: the first part of all its paths.

    Raises:
        AddressInUse: the port is taken, or the cluster's Ray Serve listens elsewhere.
        StageFailed: the application did not start; the message holds the reason.
    """
    address = f"http://{config.host}:{config.port}"
    started = not ray_serve.status().proxies
    try:
        if started:
            _start(config)
        else:
            _check_proxy(address, config)
        _deploy(application, name, route_prefix)
        yield address + route_prefix.rstrip("/")
    finally:
        if started:
            ray_serve.shutdown()
        else:
            ray_serve.delete(name)


@contextlib.contextmanager
def reporting(tell: Callable[[str], None], seconds: float = 5.0) -> Iterator[None]:
    """Tells now and then what an application that starts still waits for, until it runs or the block ends."""
    done = threading.Event()

    def watch() -> None:
        started = time.monotonic()
        while not done.wait(seconds):
            waiting = _waiting()
            if waiting is None:
                return
            tell(f"starting since {time.monotonic() - started:.0f} s; not ready yet: {waiting}")

    thread = threading.Thread(target=watch, name="start-report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _waiting() -> str | None:
    """The deployments that are not healthy yet; None once everything runs."""
    try:
        applications = ray_serve.status().applications.values()
    except (RayError, RuntimeError):
        return "Ray Serve"
    parts = [
        name
        for application in applications
        for name, deployment in application.deployments.items()
        if deployment.status != DeploymentStatus.HEALTHY
    ]
    if parts:
        return ", ".join(parts)
    return None if any(application.deployments for application in applications) else "Ray Serve"


def _start(config: ServeConfig) -> None:
    # Ray Serve shares its port with other instances silently, and waits a minute for a port that is taken.
    check_free(config.host, config.port)
    try:
        ray_serve.start(http_options={"host": config.host, "port": config.port})
    except (RayError, RuntimeError, TimeoutError) as error:
        if "Failed to bind" not in str(error):
            raise
        raise AddressInUse(
            f"cannot serve on {config.host}:{config.port}: stop what listens there, or give --set serve.port=PORT"
        ) from error


def _check_proxy(address: str, config: ServeConfig) -> None:
    """Checks that Ray Serve, which someone else started, listens at the configured address."""
    try:
        healthy = httpx.get(f"{address}/-/healthz", timeout=_PROBE_SECONDS).is_success
    except httpx.HTTPError:
        healthy = False
    if not healthy:
        raise AddressInUse(
            f"Ray Serve runs on this cluster already, but does not answer at {config.host}:{config.port}: "
            f"give its address with --set serve.host=HOST --set serve.port=PORT, or end it with `serve shutdown`"
        )


def _deploy(application: Application, name: str, route_prefix: str) -> None:
    try:
        ray_serve.run(application, name=name, route_prefix=route_prefix)
    except RuntimeError as error:
        raise StageFailed(f"the service did not start ({_reason(name) or error}): its log holds the rest") from error


def _reason(name: str) -> str | None:
    """The last line of the traceback that Ray Serve keeps from a replica that failed to start."""
    application = ray_serve.status().applications.get(name)
    messages = [] if application is None else [part.message for part in application.deployments.values()]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else None
