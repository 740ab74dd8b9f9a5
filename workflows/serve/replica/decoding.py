"""The last stage of a latent model's pictures: samples of many requests through the autoencoder together.

It runs on a thread of its own, so that decoding never holds up the step loop; what arrives meanwhile is decoded next,
as one batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.model.model import ModelPackage
from workflows.serve.replica.jobs import RowState
from workflows.serve.replica.rows import channels_last, seen
from workflows.serve.replica.warming import MAX_DECODED


@final
class Decoder:
    """Samples to pixels.

    Args:
        package: whose codec decodes.
        max_rows: decoded at once.
    """

    def __init__(self, package: ModelPackage, max_rows: int = MAX_DECODED) -> None:
        self._package, self._max_rows = package, max_rows
        self._waiting: deque[tuple[Tensor, asyncio.Future[Tensor]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def pixels_of(self, states: Sequence[RowState]) -> NDArray[np.uint8]:
        """Finished rows as pixels (n, h, w, c)."""
        loop = asyncio.get_running_loop()
        waiting = [(seen(state), loop.create_future()) for state in states]
        self._waiting.extend(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return channels_last(torch.stack([await future for _, future in waiting]))

    async def _drain(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._max_rows, len(self._waiting)))]
            batch = [(row, future) for row, future in batch if not future.cancelled()]
            if not batch:
                continue
            try:
                images = await asyncio.to_thread(self._package.drawn, torch.stack([row for row, _ in batch]))
            except Exception as error:  # noqa: BLE001 - whoever waits is told
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for image, (_, future) in zip(images, batch, strict=True):
                if not future.done():
                    future.set_result(image)
