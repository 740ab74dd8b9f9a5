"""The versions of a model in memory: the current one, the challenger, and versions that finish their requests."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, final

from diffusion_core.engine import StepEngine
from workflows.errors import ModelNotFound
from workflows.model.model import ModelPackage
from workflows.options.guidance import DEFAULT_SCALES, SETTINGS, SettingValue
from workflows.package.files import check_draws_pictures
from workflows.package.reference import ModelVersion, find_version, parse_reference, resolve
from workflows.serve.engine.admission import Admission
from workflows.serve.engine.thread import EngineThread
from workflows.serve.replica.decoding import Decoder
from workflows.serve.replica.warming import buckets_of, device_of, padding_of, warm
from workflows.serve.request.capabilities import ModelCapabilities
from workflows.serve.request.messages import SamplerRequest
from workflows.serve.request.schema import ModelCard
from workflows.serve.settings import ServeArgs

_LOG: Final = logging.getLogger("ray.serve")
_RETIRED_SECONDS: Final = 30.0
_EXAMPLES: Final = 32


@final
@dataclass(frozen=True)
class LoadedVersion:
    """A registered version in memory, with everything that requests to it need.

    Attributes:
        capabilities: the abilities of the model.
        loaded_at: Unix time in seconds.
        package: the model.
        engine: denoises rows.
        decoder: turns samples into pixels.
    """

    capabilities: ModelCapabilities
    loaded_at: int
    package: ModelPackage
    engine: EngineThread
    decoder: Decoder

    @property
    def reference(self) -> str:
        """NAME/VERSION in the registry."""
        return f"{self.capabilities.model}/{self.capabilities.version}"

    def model_card(self) -> ModelCard:
        """The entry of this version in `GET /v1/models`."""
        capabilities = self.capabilities
        return ModelCard(
            id=capabilities.model,
            created=self.loaded_at,
            version=capabilities.version,
            sizes=[capabilities.size_text],
            channels=self.package.rows.shape[0],
            classes=list(capabilities.class_names),
            guidance=list(capabilities.guidance),
            example_prompts=list(self.package.card.candidate_captions[:_EXAMPLES]),
            default_steps=capabilities.default_steps,
            max_steps=capabilities.max_steps,
            guidance_settings={name: SETTINGS[name].plain(value) for name, value in self._settings().items()},
            max_prompt_tokens=self.package.clip.text.max_tokens if self.package.reads_text else None,
        )

    def _settings(self) -> dict[str, SettingValue]:
        """Each setting of guidance where a request leaves it out."""
        own = {name: SETTINGS[name].checked(value) for name, value in self.capabilities.guidance_settings.items()}
        return {name: setting.neutral for name, setting in SETTINGS.items()} | dict(DEFAULT_SCALES) | own


@final
class LoadedVersions:
    """The versions that one replica holds in memory.

    A swap loads and warms the new version beside the old one. Then new requests go to the new version; the old version
    finishes its requests and is dropped. A request with a checkpoint goes to the version that began it.

    Args:
        args: the model and its registry.

    Attributes:
        challenger_share: share of the requests without a track that go to the challenger.
        retired_seconds: time for which an unused version stays in memory.
    """

    def __init__(self, args: ServeArgs) -> None:
        self._args = args
        self._current = load_version(args, args.model)
        self._challenger: LoadedVersion | None = None
        self._loaded = {self._current.capabilities.version: self._current}
        self._loading = asyncio.Lock()
        # The C library keeps a pool of memory per thread: loads on changing threads would fill one after the other.
        self._loader = ThreadPoolExecutor(1, "load-version")
        self._unused_since: dict[str, float] = {}
        self.challenger_share = args.challenger_share
        self.retired_seconds = _RETIRED_SECONDS

    @property
    def current(self) -> LoadedVersion:
        """The version that new requests get."""
        return self._current

    @property
    def loaded(self) -> list[LoadedVersion]:
        """All versions in memory."""
        return list(self._loaded.values())

    async def choose(self, request: SamplerRequest) -> LoadedVersion:
        """Chooses the version for a request.

        Raises:
            ModelNotFound: the alias is not served, or the version that began the request is gone.
        """
        if request.checkpoint is not None:
            return await self._load(request.checkpoint.resolved.settings.version)
        if request.alias is None and request.body.version is not None:
            return self._of_number(request.body.version)
        if request.alias is None and self._challenger is not None and random.random() < self.challenger_share:  # noqa: S311 - no secret
            return self._challenger
        return await self.of_alias(request.alias)

    def _of_number(self, number: str) -> LoadedVersion:
        """The version of this number if it is served; else the current one, which refuses the request by name."""
        served = [version for version in (self._current, self._challenger) if version is not None]
        return next((version for version in served if version.capabilities.version == number), self._current)

    async def of_alias(self, alias: str | None) -> LoadedVersion:
        """The version of an alias: the served one, or the challenger; None, or empty, means the served one.

        Raises:
            ModelNotFound: another alias, or there is no challenger.
        """
        name, own, _ = parse_reference(self._args.model)
        if not alias or alias == own:
            return self._current
        if own is None or alias != self._args.challenger:
            known = " or ".join(repr(f"{name}@{one}") for one in (own, self._args.challenger) if own and one)
            raise ModelNotFound(
                f"no model {f'{name}@{alias}'!r} is served here: ask for {known or repr(name)}", "model"
            )
        if self._challenger is None:
            await self.refresh()
        if self._challenger is None:
            raise ModelNotFound(f"{name} has no {alias}: ask for {name!r}", "model")
        return self._challenger

    async def refresh(self, reference: str | None = None) -> None:
        """Looks up the aliases, and loads the versions that are not in memory yet in the background.

        Args:
            reference: follow this reference from now on, instead of the present one.
        """
        if reference is not None:
            self._args = self._args.model_copy(update={"model": reference})
        registered = await self._find(self._args.model)
        if registered.version != self._current.capabilities.version:
            self._current = await self._load(registered.version)
            _LOG.info("%s now serves version %s", registered.name, registered.version)
        await self._refresh_challenger()
        await self._retire()

    async def _refresh_challenger(self) -> None:
        name, alias, _ = parse_reference(self._args.model)
        if alias is None or self._args.challenger is None:
            return
        try:
            registered = await self._find(f"{name}@{self._args.challenger}")
        except ModelNotFound:
            self._challenger = None
            return
        if self._challenger is None or self._challenger.capabilities.version != registered.version:
            self._challenger = await self._load(registered.version)

    async def _find(self, reference: str) -> ModelVersion:
        return await asyncio.to_thread(find_version, self._args.tracking_uri, reference)

    async def _load(self, number: str) -> LoadedVersion:
        async with self._loading:
            if number not in self._loaded:
                reference = f"{self._current.capabilities.model}/{number}"
                loading = self._loader.submit(load_version, self._args, reference)
                self._loaded[number] = await asyncio.wrap_future(loading)
            return self._loaded[number]

    async def _retire(self) -> None:
        """Drops the versions that get no new requests and whose engines are empty."""
        used = {version.capabilities.version for version in (self._current, self._challenger) if version is not None}
        now = time.monotonic()
        self._unused_since = {number: self._unused_since.get(number, now) for number in self._loaded.keys() - used}
        for number, since in self._unused_since.items():
            engine = self._loaded[number].engine
            if engine.load.rows == 0 and now - since >= self.retired_seconds:
                del self._loaded[number]
                await asyncio.to_thread(engine.stop)


def load_version(args: ServeArgs, reference: str) -> LoadedVersion:
    """Loads a registered version, and makes it denoise once at every batch size.

    Args:
        args: the registry, the device and the limits.
        reference: NAME@ALIAS or NAME/VERSION.

    Raises:
        ModelNotFound: the registry knows no such model, version or alias.
        TrackingUnreachable: the registry does not answer.
        InvalidBundle: the model's folder is broken.
        InvalidConfig: the model generates vectors.
    """
    registered = resolve(args.tracking_uri, reference)
    buckets, device = buckets_of(args.max_rows), device_of(args.device)
    package = ModelPackage.load(registered.folder, device, buckets=padding_of(device, buckets))
    check_draws_pictures(package.card, reference)
    times = warm(package, buckets)
    engine = StepEngine(package.denoiser, package.shape, max_rows=args.max_rows)
    admission = Admission(args.max_waiting_rows, args.max_waiting_seconds, args.max_rows)
    return LoadedVersion(
        capabilities=capabilities_of(package, registered.version, args),
        loaded_at=int(time.time()),
        package=package,
        engine=EngineThread(engine, admission, times),
        decoder=Decoder(package),
    )


def capabilities_of(package: ModelPackage, version: ModelVersion, args: ServeArgs) -> ModelCapabilities:
    """The abilities of a package, within the limits of the service."""
    _, height, width = package.rows.shape
    max_steps = min(args.max_steps, package.schedule.num_levels)
    return ModelCapabilities(
        model=version.name,
        version=version.version,
        size=(width, height),
        class_names=package.class_names,
        guidance=tuple(kind for kind in package.guidance if kind not in package.card.withheld),
        guidance_settings=package.defaults.guidance,
        default_steps=min(args.num_steps, max_steps),
        max_steps=max_steps,
        conditions=package.conditions,
    )
