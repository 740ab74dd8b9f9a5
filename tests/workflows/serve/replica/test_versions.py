"""A model is swapped while it serves: nothing fails, both versions end their own, and the answer says which it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.workflows.serve.conftest import LocalEncoder, make_config, register_package
from workflows.config.schema import RunConfig
from workflows.errors import InvalidConfig, ModelNotFound
from workflows.model.model import ModelPackage
from workflows.package.reference import ModelVersion
from workflows.serve.replica.replica import Replica
from workflows.serve.replica.versions import capabilities_of
from workflows.serve.request.messages import Checkpoint, Refusal, SamplerRequest
from workflows.serve.request.pictures import Generated
from workflows.serve.request.schema import GenerationRequest
from workflows.serve.settings import ServeArgs
from workflows.tracking.store import open_client


class Registry:
    """A registry with two versions, of other weights; the alias moves on request."""

    def __init__(self, config: RunConfig, packages: list[Path]) -> None:
        self.args = ServeArgs.of(config).model_copy(update={"max_rows": 4, "poll_seconds": 0.0, "keep_seconds": 1e-6})
        for package in packages:
            register_package(config, package)
        self._client = open_client(self.args.tracking_uri)

    def move(self, alias: str, version: str) -> None:
        self._client.set_registered_model_alias("tiny", alias, version)

    def drop(self, alias: str) -> None:
        self._client.delete_registered_model_alias("tiny", alias)


@pytest.fixture(scope="module")
def packages(tiny_package: Path, write_package: Callable[..., Path], tmp_path_factory: Any) -> list[Path]:
    return [tiny_package, write_package(tmp_path_factory.mktemp("second"), seed=1, spread=0.3)]


@pytest.fixture(scope="module")
def registry(packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(make_config(tmp_path_factory.mktemp("versions")), packages)


@pytest.fixture
def replica(registry: Registry, tiny_package: Path) -> Iterator[Replica]:
    registry.move("champion", "1")
    replica = Replica(registry.args, LocalEncoder(tiny_package))  # type: ignore[arg-type]
    yield replica
    replica.stop()


def request(**fields: object) -> SamplerRequest:
    given = {"prompt": "a handwritten one", "seed": 5, "num_inference_steps": 10} | fields
    return SamplerRequest(GenerationRequest.model_validate(given), "one")


async def generate(replica: Replica, sent: SamplerRequest) -> Generated:
    last = [message async for message in replica.generate(sent)][-1]
    if isinstance(last, Refusal):
        raise last.error
    assert isinstance(last, Generated) and last.finished
    return last


def test_a_moved_alias_swaps_and_the_answer_names_the_version(replica: Replica, registry: Registry) -> None:
    async def swap() -> list[Generated]:
        found = [await generate(replica, request())]
        registry.move("champion", "2")
        found.append(await generate(replica, request()))
        await replica.refresh()
        found.append(await generate(replica, request()))
        return found

    before, meanwhile, after = asyncio.run(swap())
    assert [one.settings.version for one in (before, meanwhile, after)] == ["1", "1", "2"]
    assert np.array_equal(before.pixels, meanwhile.pixels)
    assert not np.array_equal(before.pixels, after.pixels)
    assert asyncio.run(replica.model_card()).version == "2"


def test_a_request_ends_with_the_version_that_began_it(replica: Replica, registry: Registry) -> None:
    async def swap() -> tuple[Generated, Generated, Generated]:
        alone = await generate(replica, request(num_inference_steps=100, sampler="ddpm"))
        async with aclosing(replica.generate(request(num_inference_steps=100, sampler="ddpm"))) as messages:
            assert isinstance(await anext(messages), Checkpoint)
            registry.move("champion", "2")
            await replica.refresh()
            new = await generate(replica, request())
            old = [message async for message in messages][-1]
        assert isinstance(old, Generated)
        return alone, old, new

    alone, old, new = asyncio.run(swap())
    assert (old.settings.version, new.settings.version) == ("1", "2")
    assert np.array_equal(old.pixels, alone.pixels)


def test_a_version_that_is_no_longer_wanted_leaves_when_it_is_idle(replica: Replica, registry: Registry) -> None:
    async def swap() -> list[list[str]]:
        replica._versions.retired_seconds = 0.0
        registry.move("champion", "2")
        await replica.refresh()
        return [sorted(version.capabilities.version for version in replica._versions.loaded)]

    assert asyncio.run(swap()) == [["2"]]


def test_a_half_made_picture_goes_on_with_its_own_version_on_another_replica(
    replica: Replica, registry: Registry, tiny_package: Path
) -> None:
    async def hand_over() -> tuple[Generated, Generated, int]:
        sent = request(num_inference_steps=60, sampler="ddpm", n=3)
        whole = await generate(replica, sent)
        async with aclosing(replica.generate(sent)) as messages:
            checkpoint = [await anext(messages) for _ in range(5)][-1]
        assert isinstance(checkpoint, Checkpoint)
        registry.move("champion", "2")
        other = Replica(registry.args, LocalEncoder(tiny_package))  # type: ignore[arg-type]
        assert (await other.model_card()).version == "2"
        try:
            return whole, await generate(other, replace(sent, checkpoint=checkpoint)), checkpoint.rows[0].index
        finally:
            other.stop()

    whole, resumed, index = asyncio.run(hand_over())
    assert 0 < index < 60
    assert resumed.settings == whole.settings
    assert np.array_equal(resumed.pixels, whole.pixels)


def test_what_was_kept_matters(replica: Replica) -> None:
    """The negative control of the test above: another x makes another picture."""

    async def tampered() -> tuple[Generated, Generated]:
        sent = request(num_inference_steps=60, sampler="ddpm")
        whole = await generate(replica, sent)
        async with aclosing(replica.generate(sent)) as messages:
            checkpoint = [await anext(messages) for _ in range(5)][-1]
        assert isinstance(checkpoint, Checkpoint)
        row = replace(checkpoint.rows[0], x=checkpoint.rows[0].x + 1.0)
        return whole, await generate(replica, replace(sent, checkpoint=replace(checkpoint, rows=(row,))))

    whole, other = asyncio.run(tampered())
    assert not np.array_equal(whole.pixels, other.pixels)


def test_the_challenger_draws_for_those_who_ask_and_for_its_share(replica: Replica, registry: Registry) -> None:
    async def compare() -> list[str]:
        with pytest.raises(ModelNotFound, match="no challenger"):
            await generate(replica, replace(request(), alias="challenger"))
        with pytest.raises(ModelNotFound, match="ask for 'tiny@champion' or 'tiny@challenger'"):
            await generate(replica, replace(request(), alias="champoin"))
        registry.move("challenger", "2")
        sent = [request(), replace(request(), alias="challenger"), replace(request(), alias="champion")]
        versions = [(await generate(replica, one)).settings.version for one in sent]
        replica._versions.challenger_share = 1.0
        versions += [(await generate(replica, one)).settings.version for one in sent]
        return versions

    try:
        assert asyncio.run(compare()) == ["1", "2", "1", "2", "2", "1"]
    finally:
        registry.drop("challenger")


def test_a_user_config_moves_the_model_and_is_checked(replica: Replica) -> None:
    async def configure() -> str:
        await replica.reconfigure({"model": "tiny/2", "challenger_share": 0.25})
        await asyncio.gather(*replica._background)
        return (await replica.model_card()).version

    assert asyncio.run(configure()) == "2"
    assert replica._versions.challenger_share == 0.25
    for bad in ({"modle": "tiny/2"}, {"challenger_share": 2.0}):
        with pytest.raises(InvalidConfig, match="user_config"):
            asyncio.run(replica.reconfigure(bad))


def test_a_client_who_has_left_gets_no_rows_whichever_message_comes_first(replica: Replica) -> None:
    async def leave() -> tuple[int, int]:
        sent = request(num_inference_steps=100, n=4)
        generating = asyncio.create_task(generate(replica, sent))
        while (await replica.load()).rows == 0:
            await asyncio.sleep(0)
        await replica.cancel("one")
        with pytest.raises(asyncio.CancelledError):
            await generating
        rows = (await replica.load()).rows
        with pytest.raises(asyncio.CancelledError):
            await generate(replica, sent)
        return rows, (await replica.load()).cancelled

    assert asyncio.run(leave()) == (0, 4)


def test_guidance_that_does_not_help_is_not_offered(tiny_package: Path) -> None:
    package, args = ModelPackage.load(tiny_package), ServeArgs(model="tiny/1", tracking_uri="http://unused")
    version = ModelVersion("tiny", "1", "run", {})
    assert capabilities_of(package, version, args).guidance == package.guidance
    package.card = replace(package.card, withheld=("clip", "classifier"))
    assert capabilities_of(package, version, args).guidance == ("none", "direct", "classifier_free")
