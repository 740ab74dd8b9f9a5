"""Server-sent events: previews, then the finished pictures; an error after the first event is an event too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Literal, TypeAlias

from ray.serve.exceptions import RequestCancelledError

from workflows.serve.http.errors import error_answer, status_of, unwrap
from workflows.serve.request.pictures import Generated, images_of
from workflows.serve.request.schema import StreamEvent, Usage

_LOG: Final = logging.getLogger("ray.serve")
_FAILED: Final = 500
Route: TypeAlias = Literal["image_generation", "image_edit"]


async def event_stream(first: Generated, rest: AsyncGenerator[Generated, None], route: Route) -> AsyncIterator[bytes]:
    """Yields the body of a streamed answer.

    Args:
        first: the first pictures; an error before them is a status.
        rest: the pictures that follow.
        route: the first half of each event's name.
    """
    num_previews = 0
    generated: Generated | None = first
    try:
        async with aclosing(rest):
            while generated is not None:
                for event in await asyncio.to_thread(_events, generated, route, num_previews):
                    yield event
                num_previews += not generated.finished
                generated = await anext(rest, None)
    except RequestCancelledError:
        # The client has left: nobody reads any further event.
        return
    # The status has gone out, so an error can only be an event.
    except Exception as error:  # noqa: BLE001
        if status_of(unwrap(error)) >= _FAILED:
            _LOG.exception("a streamed answer failed")
        _, body, _ = error_answer(error)
        yield _encode("error", body.model_dump_json(exclude_none=True))


def _events(generated: Generated, route: Route, num_previews: int) -> list[bytes]:
    settings, finished = generated.settings, generated.finished
    encoded = []
    for image in images_of(generated, "b64_json"):
        event = StreamEvent(
            type=f"{route}.{'completed' if finished else 'partial_image'}",
            b64_json=image.b64_json or "",
            created_at=int(time.time()),
            size=settings.size,
            seed=image.seed,
            step=generated.step,
            partial_image_index=None if finished else num_previews,
            usage=Usage() if finished else None,
            settings=settings.model_copy(update={"seeds": [image.seed]}) if finished else None,
        )
        encoded.append(_encode(event.type, event.model_dump_json(exclude_none=True)))
    return encoded


def _encode(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
