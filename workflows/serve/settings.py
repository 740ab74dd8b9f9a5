"""The settings of the application, from the command line or from the `args` of a Serve config file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, Field, NonNegativeInt, ValidationError

from workflows.config.faults import describe, place
from workflows.config.schema import PositiveInt, RunConfig, Section
from workflows.errors import InvalidConfig
from workflows.tracking.store import tracking_uri


def _same_everywhere(uri: str) -> str:
    """Refuses a relative path, since replicas run in other folders and on other machines."""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise ValueError(f"found the relative path {uri}, wanted sqlite:////ABSOLUTE/PATH or http://HOST:PORT")
    return uri


@final
class ServeArgs(Section):
    """The arguments of `workflows.serve.app:build`."""

    model: str = Field(min_length=1, description="Registered model: NAME@ALIAS or NAME/VERSION.")
    tracking_uri: Annotated[str, AfterValidator(_same_everywhere)] = Field(
        min_length=1, description="MLflow tracking URI of the registry, as every node reaches it."
    )
    models: tuple[str, ...] = Field((), description="Further models, each NAME@ALIAS or NAME/VERSION.")
    challenger: str | None = Field("challenger", description="Alias of the version that clients may choose instead.")
    challenger_share: float = Field(0.0, ge=0, le=1, description="Share of requests that the challenger gets.")
    poll_seconds: float = Field(10.0, ge=0, description="Seconds between two lookups of the alias; 0: never.")
    num_steps: PositiveInt = Field(50, description="Default num_inference_steps.")
    max_steps: PositiveInt = Field(1000, description="Largest num_inference_steps of a request.")
    max_rows: PositiveInt = Field(32, description="Pictures that one replica denoises at once.")
    max_waiting_rows: PositiveInt = Field(256, description="Pictures that one replica accepts before it answers 429.")
    max_waiting_seconds: float = Field(
        300.0, gt=0, description="Seconds of denoising that one replica accepts before it answers 429."
    )
    keep_seconds: float = Field(1.0, gt=0, description="Seconds between two checkpoints of an unfinished picture.")
    max_body_bytes: PositiveInt = Field(16_000_000, description="Largest body of a request.")
    api_keys_file: str | None = Field(
        None, description="File with one `NAME SHA256 [REQUESTS_PER_MINUTE]` per line; see `raverse api-key`."
    )
    require_key: Literal["unless_loopback", "always", "loopback_only", "never"] = Field(
        "unless_loopback",
        description="Who needs an API key. `unless_loopback`: everybody where there are keys, and where there are none "
        "only this machine is answered; `loopback_only`: only this machine is answered, without a key.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Names in the Host header that are answered; *: any. None given: any name where clients need keys, "
        "and else those of this machine, so that no page of another site can ask through a browser.",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Sites whose pages may ask from a browser, such as https://example.org."
    )
    max_requests: PositiveInt = Field(1000, description="Requests that the ingress holds open.")
    min_replicas: NonNegativeInt = Field(
        1, description="Smallest number of sampler replicas; 0: none without requests."
    )
    max_replicas: PositiveInt = Field(1, description="Largest number of sampler replicas.")
    target_seconds: float = Field(
        10.0, gt=0, description="Seconds of denoising that may wait per replica, when scaling."
    )
    upscale_seconds: float = Field(
        30.0, ge=0, description="Seconds for which more replicas must be due before they start."
    )
    downscale_seconds: float = Field(600.0, ge=0, description="Seconds for which fewer must be due before any ends.")
    drain_seconds: float = Field(120.0, ge=0, description="Seconds in which an ending replica may finish its pictures.")
    num_cpus: float = Field(1.0, ge=0, description="CPUs of a sampler replica.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of a sampler replica.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where samplers compute; auto: a GPU if there is one."
    )

    @classmethod
    def of(cls, config: RunConfig, model: str | None = None) -> ServeArgs:
        """Takes the settings of a job.

        Args:
            config: the job.
            model: NAME@ALIAS or NAME/VERSION, in place of the job's own name and alias.
        """
        serve = config.serve
        return cls(
            model=model or f"{config.register_.model_name}@{config.register_.alias}",
            tracking_uri=tracking_uri(config),
            num_steps=serve.num_steps,
            max_steps=serve.max_steps,
            max_rows=serve.max_rows,
            min_replicas=serve.min_replicas,
            max_replicas=serve.max_replicas,
            api_keys_file=serve.api_keys_file,
            allowed_hosts=serve.allowed_hosts,
            cors_origins=serve.cors_origins,
        )

    @property
    def references(self) -> tuple[str, ...]:
        """All models, the default first."""
        return (self.model, *self.models)

    def for_model(self, reference: str) -> ServeArgs:
        """The settings of one model's sampler deployment."""
        return self.model_copy(update={"model": reference, "models": ()})

    @classmethod
    def read(cls, values: ServeArgs | dict[str, Any]) -> ServeArgs:
        """Checks the `args` of a Serve config file.

        Raises:
            InvalidConfig: an unknown key, or a value out of range; the message names all of them.
        """
        if isinstance(values, ServeArgs):
            return values
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = [f"{place(fault)}: {describe(fault)}" for fault in error.errors()]
            known = ", ".join(cls.model_fields)
            raise InvalidConfig(f"args of the Serve application: {'; '.join(faults)} (known: {known})") from None


@final
class UserConfig(Section):
    """The settings of a sampler deployment that a Serve config file may change while it runs (`user_config`)."""

    model: str | None = Field(None, min_length=1, description="Another reference to the same model: NAME@ALIAS.")
    challenger_share: float | None = Field(None, ge=0, le=1, description="Share of requests of the challenger.")

    @classmethod
    def read(cls, values: dict[str, Any]) -> UserConfig:
        """Checks a `user_config`.

        Raises:
            InvalidConfig: an unknown key, or a value out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = [f"{place(fault)}: {describe(fault)}" for fault in error.errors()]
            raise InvalidConfig(f"user_config of the sampler: {'; '.join(faults)}") from None
