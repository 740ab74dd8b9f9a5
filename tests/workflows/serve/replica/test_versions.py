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
from workflows.serve.replica.replica import Sampler
from workflows.serve.request.messages import Call, Kept
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
def sampler(registry: Registry, tiny_package: Path) -> Iterator[Sampler]:
    registry.move("champion", "1")
    sampler = Sampler(registry.args, LocalEncoder(tiny_package))  # type: ignore[arg-type]
    yield sampler
    sampler.stop()


def call(**fields: object) -> Call:
    given = {"prompt": "a handwritten one", "seed": 5, "num_inference_steps": 10} | fields
    return Call(GenerationRequest.model_validate(given), "one")


async def draw(sampler: Sampler, asked: Call) -> Generated:
    events = [event async for event in sampler.draw(asked)]
    assert isinstance(events[-1], Generated)
    return events[-1]


def test_a_moved_alias_swaps_and_the_answer_names_the_version(sampler: Sampler, registry: Registry) -> None:
    async def swap() -> list[Generated]:
        found = [await draw(sampler, call())]
        registry.move("champion", "2")
        found.append(await draw(sampler, call()))
        await sampler.refresh()
        found.append(await draw(sampler, call()))
        return found

    before, meanwhile, after = asyncio.run(swap())
    assert [one.settings.version for one in (before, meanwhile, after)] == ["1", "1", "2"]
    assert np.array_equal(before.pixels, meanwhile.pixels)
    assert not np.array_equal(before.pixels, after.pixels)
    assert asyncio.run(sampler.card()).version == "2"


def test_a_request_ends_with_the_version_that_began_it(sampler: Sampler, registry: Registry) -> None:
    async def swap() -> tuple[Generated, Generated, Generated]:
        alone = await draw(sampler, call(num_inference_steps=100, sampler="ddpm"))
        async with aclosing(sampler.draw(call(num_inference_steps=100, sampler="ddpm"))) as events:
            assert isinstance(await anext(events), Kept)
            registry.move("champion", "2")
            await sampler.refresh()
            new = await draw(sampler, call())
            old = [event async for event in events][-1]
        assert isinstance(old, Generated)
        return alone, old, new

    alone, old, new = asyncio.run(swap())
    assert (old.settings.version, new.settings.version) == ("1", "2")
    assert np.array_equal(old.pixels, alone.pixels)


def test_a_version_that_is_no_longer_wanted_leaves_when_it_is_idle(sampler: Sampler, registry: Registry) -> None:
    async def swap() -> list[list[str]]:
        sampler._versions.retired_seconds = 0.0
        registry.move("champion", "2")
        await sampler.refresh()
        return [sorted(served.menu.version for served in sampler._versions.held)]

    assert asyncio.run(swap()) == [["2"]]


def test_a_half_made_picture_goes_on_with_its_own_version_on_another_replica(
    sampler: Sampler, registry: Registry, tiny_package: Path
) -> None:
    async def hand_over() -> tuple[Generated, Generated, int]:
        asked = call(num_inference_steps=60, sampler="ddpm", n=3)
        whole = await draw(sampler, asked)
        async with aclosing(sampler.draw(asked)) as events:
            kept = [await anext(events) for _ in range(5)][-1]
        assert isinstance(kept, Kept)
        registry.move("champion", "2")
        other = Sampler(registry.args, LocalEncoder(tiny_package))  # type: ignore[arg-type]
        assert (await other.card()).version == "2"
        try:
            return whole, await draw(other, replace(asked, kept=kept)), kept.rows[0].index
        finally:
            other.stop()

    whole, resumed, index = asyncio.run(hand_over())
    assert 0 < index < 60
    assert resumed.settings == whole.settings
    assert np.array_equal(resumed.pixels, whole.pixels)


def test_what_was_kept_matters(sampler: Sampler) -> None:
    """The negative control of the test above: another x makes another picture."""

    async def tampered() -> tuple[Generated, Generated]:
        asked = call(num_inference_steps=60, sampler="ddpm")
        whole = await draw(sampler, asked)
        async with aclosing(sampler.draw(asked)) as events:
            kept = [await anext(events) for _ in range(5)][-1]
        assert isinstance(kept, Kept)
        row = replace(kept.rows[0], x=kept.rows[0].x + 1.0)
        return whole, await draw(sampler, replace(asked, kept=replace(kept, rows=(row,))))

    whole, other = asyncio.run(tampered())
    assert not np.array_equal(whole.pixels, other.pixels)


def test_the_challenger_draws_for_those_who_ask_and_for_its_share(sampler: Sampler, registry: Registry) -> None:
    async def compare() -> list[str]:
        with pytest.raises(ModelNotFound, match="no challenger"):
            await draw(sampler, replace(call(), track="challenger"))
        registry.move("challenger", "2")
        asked = [call(), replace(call(), track="challenger"), replace(call(), track="champion")]
        versions = [(await draw(sampler, one)).settings.version for one in asked]
        sampler._versions.challenger_share = 1.0
        versions += [(await draw(sampler, one)).settings.version for one in asked]
        return versions

    try:
        assert asyncio.run(compare()) == ["1", "2", "1", "2", "2", "1"]
    finally:
        registry.drop("challenger")


def test_a_user_config_moves_the_model_and_is_checked(sampler: Sampler) -> None:
    async def configure() -> str:
        await sampler.reconfigure({"model": "tiny/2", "challenger_share": 0.25})
        await asyncio.gather(*sampler._chores)
        return (await sampler.card()).version

    assert asyncio.run(configure()) == "2"
    assert sampler._versions.challenger_share == 0.25
    for bad in ({"modle": "tiny/2"}, {"challenger_share": 2.0}):
        with pytest.raises(InvalidConfig, match="user_config"):
            asyncio.run(sampler.reconfigure(bad))


def test_a_client_who_has_left_gets_no_rows_whichever_message_comes_first(sampler: Sampler) -> None:
    async def leave() -> tuple[int, int]:
        asked = call(num_inference_steps=100, n=4)
        drawing = asyncio.create_task(draw(sampler, asked))
        while (await sampler.load()).rows == 0:
            await asyncio.sleep(0)
        await sampler.leave("one")
        with pytest.raises(asyncio.CancelledError):
            await drawing
        rows = (await sampler.load()).rows
        with pytest.raises(asyncio.CancelledError):
            await draw(sampler, asked)
        return rows, (await sampler.load()).cancelled

    assert asyncio.run(leave()) == (0, 4)
