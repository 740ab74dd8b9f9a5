"""The application: ingress, text encoder and samplers, bound together.

A Serve config file names `workflows.serve.app:build` as `import_path`, with the fields of `ServeArgs` as
`args`; `raverse serve` calls `serve`.
"""

from __future__ import annotations

import json
import shlex
import threading
from typing import Any, Final

import httpx
from ray import serve as ray_serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig

from workflows.config import RunConfig
from workflows.model_reference import find_version
from workflows.progress import Progress
from workflows.serve.host import hosted
from workflows.serve.ingress import Ingress
from workflows.serve.sampler import Sampler
from workflows.serve.settings import ServeArgs
from workflows.serve.text import MAX_BATCH, TextEncoder

APP_NAME: Final = "raverse"

# Ray's default of 2 s delays every shutdown by as much.
_SHUTDOWN_LOOP_SECONDS: Final = 0.1
_TIMEOUT_SECONDS: Final = 30.0


def serve(config: RunConfig, model: str, progress: Progress) -> None:
    """Serves a registered model on the present Ray session until Ctrl-C.

    Args:
        config: host, port, registry and limits.
        model: NAME@ALIAS or NAME/VERSION.
        progress: told where the service is, and how to get a picture.

    Raises:
        ModelNotFound: the registry has no such model; nothing was started.
        TrackingUnreachable: the registry does not answer.
        AddressInUse: the port is taken.
        StageFailed: the application did not start; says why.
    """
    args = ServeArgs.of(config, model)
    found = find_version(args.tracking_uri, args.model)
    with hosted(config.serve, build(args), APP_NAME) as url:
        progress.log(f"serving {found.name} version {found.version} at {url} until Ctrl-C; a picture from it:")
        progress.log(_example(url))
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            progress.log("stopping")


def build(args: dict[str, Any] | ServeArgs) -> Application:
    """The application, from the fields of `ServeArgs`.

    Raises:
        InvalidConfig: an unknown field, or a value out of range.
    """
    settings = ServeArgs.read(args)
    text_encoder = _deployment(TextEncoder, "text-encoder", max_ongoing_requests=2 * MAX_BATCH)
    sampler = _deployment(
        Sampler,
        "sampler",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        # The engine itself refuses what is too much, and says when to come back.
        max_ongoing_requests=2 * settings.max_waiting_rows,
        max_queued_requests=settings.max_waiting_rows,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        **_replicas(settings),
    )
    ingress = _deployment(
        ray_serve.ingress()(Ingress),
        "ingress",
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_requests,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    return ingress.bind(sampler.bind(settings, text_encoder.bind(settings)))


def _example(url: str) -> str:
    """A command that draws something the model has learnt."""
    prompt = httpx.get(f"{url}/v1/models", timeout=_TIMEOUT_SECONDS).json()["data"][0]["example_prompts"][0]
    body = shlex.quote(json.dumps({"prompt": prompt}))
    return (
        f"curl -s {url}/v1/images/generations -H 'Content-Type: application/json' -d {body} | "
        "grep -oE '[A-Za-z0-9+/=]{90,}' | base64 -d > picture.png"
    )


def _deployment(kind: type, name: str, **options: Any) -> Deployment:
    """A deployment; by default it reserves no CPU, since it mostly waits."""
    defaults = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_wait_loop_s": _SHUTDOWN_LOOP_SECONDS}
    return ray_serve.deployment(kind, name=name, **(defaults | options))


def _replicas(settings: ServeArgs) -> dict[str, Any]:
    if settings.max_replicas <= settings.min_replicas:
        return {"num_replicas": settings.min_replicas}
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.max_rows,
    )
    return {"autoscaling_config": scaling}
