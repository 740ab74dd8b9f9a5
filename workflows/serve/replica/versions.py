"""Versions of a model in memory: the present one, the challenger, and those that still finish their requests."""

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
from workflows.package.files import check_draws_pictures
from workflows.package.reference import find_version, parse_reference, resolve
from workflows.serve.replica.decoding import Decoder
from workflows.serve.replica.engine_thread import EngineThread
from workflows.serve.replica.jobs import Limits
from workflows.serve.replica.warming import buckets_of, device_of, padding_of, warm
from workflows.serve.request.messages import CHALLENGER, Call
from workflows.serve.request.resolve import Menu
from workflows.serve.request.schema import Guidance
from workflows.serve.settings import ServeArgs

_LOG: Final = logging.getLogger("ray.serve")
_RETIRED_SECONDS: Final = 30.0


@final
@dataclass(frozen=True)
class Served:
    """One loaded version: what a swap replaces as a whole."""

    menu: Menu
    loaded: int
    package: ModelPackage
    engine: EngineThread
    decoder: Decoder


@final
class Versions:
    """The versions that one replica has loaded.

    A swap loads and warms the new version beside the old one, then new requests go to it; the old one ends its
    own and is dropped. A call that another replica left unfinished goes on with the version that began it.

    Args:
        args: which model, and where.
    """

    def __init__(self, args: ServeArgs) -> None:
        self._args = args
        self._present = load_served(args, args.model)
        self._challenger: Served | None = None
        self._held = {self._present.menu.version: self._present}
        self._loading = asyncio.Lock()
        # The C library keeps a pool of memory per thread: loads on changing threads would fill one after the other.
        self._loader = ThreadPoolExecutor(1, "load-version")
        self._displaced: dict[str, float] = {}
        self.challenger_share = args.challenger_share
        self.retired_seconds = _RETIRED_SECONDS

    @property
    def present(self) -> Served:
        """What new requests get."""
        return self._present

    @property
    def held(self) -> list[Served]:
        """All that are in memory."""
        return list(self._held.values())

    async def choose(self, call: Call) -> Served:
        """The version for a call.

        Raises:
            ModelNotFound: there is no challenger, or the version that began the call is gone.
        """
        if call.kept is not None:
            return await self._version(call.kept.settings.version)
        if call.track == CHALLENGER:
            if self._challenger is None:
                await self.refresh()
            if self._challenger is None:
                raise ModelNotFound(f"{self._present.menu.model} has no challenger: leave the choice out")
            return self._challenger
        if call.track is None and self._challenger is not None and random.random() < self.challenger_share:  # noqa: S311 - no secret
            return self._challenger
        return self._present

    async def refresh(self, reference: str | None = None) -> None:
        """Looks where the aliases are, and loads in the background what is not in memory yet.

        Args:
            reference: follow this one from now on.
        """
        if reference is not None:
            self._args = self._args.model_copy(update={"model": reference})
        version = await asyncio.to_thread(find_version, self._args.tracking_uri, self._args.model)
        if version.version != self._present.menu.version:
            self._present = await self._version(version.version)
            _LOG.info("%s now serves version %s", version.name, version.version)
        await self._refresh_challenger()
        await self._retire()

    async def _refresh_challenger(self) -> None:
        name, alias, _ = parse_reference(self._args.model)
        if alias is None or self._args.challenger is None:
            return
        try:
            found = await asyncio.to_thread(find_version, self._args.tracking_uri, f"{name}@{self._args.challenger}")
        except ModelNotFound:
            self._challenger = None
            return
        if self._challenger is None or self._challenger.menu.version != found.version:
            self._challenger = await self._version(found.version)

    async def _version(self, version: str) -> Served:
        async with self._loading:
            if version not in self._held:
                reference = f"{self._present.menu.model}/{version}"
                loading = self._loader.submit(load_served, self._args, reference)
                self._held[version] = await asyncio.wrap_future(loading)
            return self._held[version]

    async def _retire(self) -> None:
        """Drops versions that nobody asks for any more and that have nothing left to do."""
        wanted = {self._present.menu.version} | ({self._challenger.menu.version} if self._challenger else set())
        now = time.monotonic()
        self._displaced = {version: self._displaced.get(version, now) for version in self._held.keys() - wanted}
        for version, since in self._displaced.items():
            served = self._held[version]
            if served.engine.load.rows == 0 and now - since >= self.retired_seconds:
                del self._held[version]
                await asyncio.to_thread(served.engine.stop)


def load_served(args: ServeArgs, reference: str) -> Served:
    """Loads the model that the registry names, and has it denoise at every batch size once.

    Raises:
        ModelNotFound: the registry knows no such model, version or alias.
        TrackingUnreachable: the registry does not answer.
        InvalidBundle: the model's folder is broken.
        InvalidConfig: the model draws vectors.
    """
    found, buckets, device = resolve(args.tracking_uri, reference), buckets_of(args.max_rows), device_of(args.device)
    package = ModelPackage.load(found.folder, device, buckets=padding_of(device, buckets))
    check_draws_pictures(package.card, reference)
    _, height, width = package.rows.shape
    longest = min(args.max_steps, package.schedule.num_levels)
    defaults = package.defaults
    scales: dict[Guidance, float] = {
        "classifier_free": defaults.guidance_scale,
        "classifier": defaults.classifier_scale,
        "clip": defaults.clip_scale,
    }
    menu = Menu(
        model=found.version.name,
        version=found.version.version,
        size=(width, height),
        class_names=package.class_names,
        scales={kind: scale for kind, scale in scales.items() if kind in package.guidance},
        conditions=package.conditions,
        num_steps=min(args.num_steps, longest),
        max_steps=longest,
    )
    warm(package, buckets)
    engine = StepEngine(package.denoiser, package.shape, max_rows=args.max_rows)
    limits = Limits(args.max_waiting_rows, args.max_waiting_seconds)
    return Served(
        menu, int(time.time()), package, EngineThread(engine, limits, args.max_rows, buckets), Decoder(package)
    )
