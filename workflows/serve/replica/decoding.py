"""The decoding of samples: those of many requests go through the autoencoder together.

Decoding runs on a thread of its own, so that it never delays the engine. The samples that arrive meanwhile are the next
batch.
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
from workflows.serve.engine.queued_request import RowState
from workflows.serve.replica.rows import channels_last, predicted_x0
from workflows.serve.replica.warming import MAX_DECODED


@final
class Decoder:
    """Turns samples into pixels.

    Args:
        package: the model whose codec decodes.
        max_rows: largest batch, in rows; it bounds the memory of the decoder.
    """

    def __init__(self, package: ModelPackage, max_rows: int = MAX_DECODED) -> None:
        self._package, self._max_rows = package, max_rows
        self._waiting: deque[tuple[Tensor, asyncio.Future[Tensor]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def decode(self, rows: Sequence[RowState]) -> NDArray[np.uint8]:
        """Decodes finished rows into pixels `(n, h, w, c)`."""
        loop = asyncio.get_running_loop()
        waiting = [(predicted_x0(row), loop.create_future()) for row in rows]
        self._waiting.extend(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return channels_last(torch.stack([await future for _, future in waiting]))

    async def _drain(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._max_rows, len(self._waiting)))]
            batch = [(sample, future) for sample, future in batch if not future.cancelled()]
            if not batch:
                continue
            try:
                images = await asyncio.to_thread(self._package.drawn, torch.stack([sample for sample, _ in batch]))
            except Exception as error:  # noqa: BLE001 - every waiting request gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for image, (_, future) in zip(images, batch, strict=True):
                if not future.done():
                    future.set_result(image)
