"""The settings of the application, the same from the command line and from a Serve config file's `args`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, Field, ValidationError

from workflows.config import PositiveInt, RunConfig, Section
from workflows.errors import InvalidConfig
from workflows.tracking_store import tracking_uri


def _same_everywhere(uri: str) -> str:
    """Replicas run in folders, and on machines, other than the one where the URI was written."""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise ValueError(f"found the relative path {uri}, wanted sqlite:////ABSOLUTE/PATH or http://HOST:PORT")
    return uri


@final
class ServeArgs(Section):
    """What `workflows.serve.app:build` takes."""

    model: str = Field(min_length=1, description="Registered model: NAME@ALIAS or NAME/VERSION.")
    tracking_uri: Annotated[str, AfterValidator(_same_everywhere)] = Field(
        min_length=1, description="MLflow tracking URI of the registry, as every node reaches it."
    )
    num_steps: PositiveInt = Field(50, description="Default num_inference_steps.")
    max_steps: PositiveInt = Field(1000, description="Largest num_inference_steps of a request.")
    max_rows: PositiveInt = Field(32, description="Pictures that one replica denoises at once.")
    max_waiting_rows: PositiveInt = Field(256, description="Pictures that one replica accepts before it answers 429.")
    max_requests: PositiveInt = Field(1000, description="Requests that the ingress holds open.")
    min_replicas: PositiveInt = Field(1, description="Sampler replicas at least.")
    max_replicas: PositiveInt = Field(1, description="Sampler replicas at most.")
    drain_seconds: float = Field(120.0, ge=0, description="How long a leaving replica may finish its pictures.")
    num_cpus: float = Field(1.0, ge=0, description="CPUs of a sampler replica.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of a sampler replica.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where samplers compute; auto: a GPU if there is one."
    )

    @classmethod
    def of(cls, config: RunConfig, model: str | None = None) -> ServeArgs:
        """The settings of a job; `model` replaces the job's own name and alias."""
        serve = config.serve
        return cls(
            model=model or f"{config.register_.model_name}@{config.register_.alias}",
            tracking_uri=tracking_uri(config),
            num_steps=serve.num_steps,
            max_steps=serve.max_steps,
            max_rows=serve.max_rows,
            min_replicas=serve.min_replicas,
            max_replicas=serve.max_replicas,
        )

    @classmethod
    def read(cls, values: ServeArgs | dict[str, Any]) -> ServeArgs:
        """Checks the `args` of a Serve config file.

        Raises:
            InvalidConfig: an unknown key, or a value out of range; all are named.
        """
        if isinstance(values, ServeArgs):
            return values
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
            known = ", ".join(cls.model_fields)
            raise InvalidConfig(f"args of the Serve application: {'; '.join(faults)} (known: {known})") from None
