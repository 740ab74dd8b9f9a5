"""The application: the deployments `ingress`, `text-encoder` and one `sampler` per model, bound together.

A Serve config file names `workflows.serve.app:build` as `import_path`, with the fields of `ServeArgs` as
`args`; `raverse serve` calls `serve`.
"""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from typing import Any, Final

import httpx
from ray import serve as ray_serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from workflows.config.schema import RunConfig
from workflows.errors import InvalidConfig
from workflows.package.reference import ModelVersion, find_version, parse_reference
from workflows.runtime.progress import Progress
from workflows.runtime.session import cluster_address
from workflows.serve.host import hosted, reporting
from workflows.serve.http.guard import is_loopback
from workflows.serve.http.ingress import Ingress
from workflows.serve.http.keys import load_keys
from workflows.serve.replica.autoscaling import QueuedSecondsPolicy
from workflows.serve.replica.replica import Replica
from workflows.serve.replica.text_encoder import MAX_BATCH, TextEncoder
from workflows.serve.settings import ServeArgs

APP_NAME: Final = "raverse"

# Ray's default of 2 s delays every shutdown by as much.
_SHUTDOWN_LOOP_SECONDS: Final = 0.1
_TIMEOUT_SECONDS: Final = 30.0
# Ray Serve refuses with plain text and without Retry-After, so its own limits are out of reach.
_NEVER_REACHED: Final = 1_000_000
# The ingress logs each request; logs of the calls between the deployments would repeat it.
_NO_ACCESS_LOG: Final = {"enable_access_log": False}


def find_servable(config: RunConfig, model: str) -> ModelVersion:
    """Finds what `serve` would serve, and checks all that can be checked before Ray is started.

    Args:
        config: host, registry and keys.
        model: NAME@ALIAS or NAME/VERSION.

    Raises:
        ModelNotFound: the registry has no such model.
        TrackingUnreachable: the registry does not answer.
        InvalidConfig: the service would answer other machines without API keys, or the file of keys is none.
    """
    args = ServeArgs.of(config, model)
    _check_keys(config, args)
    return find_version(args.tracking_uri, args.model)


def serve(config: RunConfig, model: str, version: ModelVersion, progress: Progress) -> None:
    """Serves a registered model on the present Ray session until Ctrl-C.

    Args:
        config: host, port, registry and limits.
        model: NAME@ALIAS or NAME/VERSION.
        version: as `find_servable` found it.
        progress: receives the steps of starting, the service's addresses, and a command that requests a picture.

    Raises:
        AddressInUse: the port is taken.
        StageFailed: the application did not start; the message holds the reason.
    """
    args = ServeArgs.of(config, model)
    progress.log(f"loading {version.name} version {version.version} into {args.min_replicas} sampler(s)")
    with reporting(progress.log), hosted(config.serve, build(args), APP_NAME) as url:
        for line in _banner(config, args, version, url):
            progress.log(line)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            progress.log("stopping")


def build(args: dict[str, Any] | ServeArgs) -> Application:
    """Builds the application from the fields of `ServeArgs`.

    Raises:
        InvalidConfig: an unknown field, or a value out of range.
    """
    settings = ServeArgs.read(args)
    text_encoder = _deployment(
        TextEncoder, "text-encoder", max_ongoing_requests=2 * MAX_BATCH, logging_config=_NO_ACCESS_LOG
    ).bind(settings)
    samplers: dict[str, Any] = {}
    for reference in settings.references:
        name, _, _ = parse_reference(reference)
        deployment = "sampler" if not samplers else f"sampler-{name}"
        if name in samplers:
            raise InvalidConfig(f"models: {name!r} is there twice; its versions are served under one name")
        samplers[name] = _sampler_deployment(deployment, settings).bind(settings.for_model(reference), text_encoder)
    ingress = _deployment(
        ray_serve.ingress()(Ingress),
        "ingress",
        # The guard and the account of the ingress refuse what is too much, in the shape that clients know.
        max_ongoing_requests=_NEVER_REACHED,
        logging_config=_NO_ACCESS_LOG,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    return ingress.bind(samplers, settings)


def _sampler_deployment(name: str, settings: ServeArgs) -> Deployment:
    return _deployment(
        Replica,
        name,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        # The engine itself refuses requests beyond its limits, with a computed Retry-After.
        max_ongoing_requests=_NEVER_REACHED,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        logging_config=_NO_ACCESS_LOG,
        **_replica_options(settings),
    )


def _check_keys(config: RunConfig, args: ServeArgs) -> None:
    if not load_keys(args.api_keys_file) and not is_loopback(config.serve.host):
        raise InvalidConfig(
            f"serve.host={config.serve.host} is reached by other machines, and there are no API keys: make one with "
            "`raverse api-key NAME`, and name its file in serve.api_keys_file"
        )


def _banner(config: RunConfig, args: ServeArgs, version: ModelVersion, url: str) -> Iterator[str]:
    """Where everything is, and a command that requests a picture."""
    yield f"serving {version.name} version {version.version} at {url} until Ctrl-C"
    yield f"page: {url}/   reference: {url}/docs   log: {config.run_folder / 'ray.log'}"
    if cluster_address() is None:
        yield f"metrics: http://{config.serve.host}:{config.serve.metrics_port}/metrics"
    keyed = bool(load_keys(args.api_keys_file))
    yield "a picture from it, with your key in RAVERSE_API_KEY:" if keyed else "a picture from it:"
    yield _example_command(url, keyed=keyed)


def _example_command(url: str, *, keyed: bool) -> str:
    """A command that requests a picture that the model can make."""
    # Where the service requires a key, the captions of the package are out of reach, and a fixed prompt stands in.
    answer = httpx.get(f"{url}/v1/models", timeout=_TIMEOUT_SECONDS)
    prompt = answer.json()["data"][0]["example_prompts"][0] if answer.is_success else "a handwritten seven"
    body = shlex.quote(json.dumps({"prompt": prompt}))
    key = ' -H "Authorization: Bearer $RAVERSE_API_KEY"' if keyed else ""
    return (
        f"curl -s {url}/v1/images/generations{key} -H 'Content-Type: application/json' -d {body} | "
        "grep -oE '[A-Za-z0-9+/=]{90,}' | base64 -d > picture.png"
    )


def _deployment(kind: type, name: str, **options: Any) -> Deployment:
    """Makes a deployment; by default it reserves no CPU, since it mostly waits."""
    defaults = {"ray_actor_options": {"num_cpus": 0}, "graceful_shutdown_wait_loop_s": _SHUTDOWN_LOOP_SECONDS}
    return ray_serve.deployment(kind, name=name, **(defaults | options))


def _replica_options(settings: ServeArgs) -> dict[str, Any]:
    if settings.max_replicas <= settings.min_replicas:
        return {"num_replicas": settings.min_replicas}
    policy = AutoscalingPolicy(
        policy_function=QueuedSecondsPolicy, policy_kwargs={"target_seconds": settings.target_seconds}
    )
    scaling = AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        upscale_delay_s=settings.upscale_seconds,
        downscale_delay_s=settings.downscale_seconds,
        policy=policy,
    )
    return {"autoscaling_config": scaling}
