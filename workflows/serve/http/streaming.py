"""Server-sent events: previews on the way, then the pictures; an error after the first event is an event too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Literal, TypeAlias

from workflows.serve.http.errors import answer_to, status_of, unwrapped
from workflows.serve.request.messages import Event, Kept, Preview
from workflows.serve.request.pictures import Generated, images_of
from workflows.serve.request.schema import StreamEvent

_LOG: Final = logging.getLogger("ray.serve")
_FAILED: Final = 500
Kind: TypeAlias = Literal["image_generation", "image_edit"]


async def as_events(first: Event, rest: AsyncGenerator[Event, None], kind: Kind) -> AsyncIterator[bytes]:
    """The body of a streamed answer.

    Args:
        first: what was told already; before it an error still is a status.
        rest: what follows.
        kind: of the route; opens the names of its events.
    """
    partials = 0
    try:
        async with aclosing(rest) as events:
            for data in await asyncio.to_thread(_encode, first, kind, partials):
                yield data
            partials += isinstance(first, Preview)
            async for event in events:
                for data in await asyncio.to_thread(_encode, event, kind, partials):
                    yield data
                partials += isinstance(event, Preview)
    # The status has gone out; only an event can tell what went wrong.
    except Exception as error:  # noqa: BLE001
        if status_of(unwrapped(error)) >= _FAILED:
            _LOG.exception("a streamed answer failed")
        _, body, _ = answer_to(error)
        yield _event("error", body.model_dump_json(exclude_none=True))


def _encode(event: Event, kind: Kind, partials: int) -> list[bytes]:
    if isinstance(event, Kept):
        return []
    generated, name = (event, "completed") if isinstance(event, Generated) else (event.pictures, "partial_image")
    settings = generated.settings
    step = event.step if isinstance(event, Preview) else settings.num_inference_steps
    encoded = []
    for image in images_of(generated, "b64_json"):
        told = StreamEvent(
            type=f"{kind}.{name}",
            b64_json=image.b64_json or "",
            created_at=int(time.time()),
            size=settings.size,
            seed=image.seed,
            step=step,
            partial_image_index=partials if isinstance(event, Preview) else None,
            usage=_NO_USAGE if isinstance(event, Generated) else None,
            settings=settings.model_copy(update={"seeds": [image.seed]}) if isinstance(event, Generated) else None,
        )
        encoded.append(_event(told.type, told.model_dump_json(exclude_none=True)))
    return encoded


_NO_USAGE: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
