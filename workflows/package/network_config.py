"""What builds a diffusers network: its configuration, read without importing diffusers."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class DiffusersConfig:
    """What builds a diffusers network behind the network protocol.

    Attributes:
        architecture: `UNet2DConditionModel`, `UNet2DModel` or `DiTTransformer2DModel`.
        shape: (c, h, w) of one row.
        model: the network's own `config.json`, as JSON text.
        num_times: T of the checkpoint; level t is its time t - 1, and a further level its last time.
        token_dim: width of the tokens it reads; None: it reads none.
        num_classes: labels it reads; None: it reads none.
        null_tokens: what it reads where a row shows no condition (the empty prompt): float32 `(n, d)`, base64.
        masked: whether padded tokens are hidden from it; Stable Diffusion reads them.
        learned_variance: whether its output has twice the channels.
    """

    architecture: str
    shape: tuple[int, int, int]
    model: str
    num_times: int
    token_dim: int | None = None
    num_classes: int | None = None
    null_tokens: str = ""
    masked: bool = False
    learned_variance: bool = False

    @property
    def model_config(self) -> dict[str, Any]:
        """The network's own configuration."""
        values: dict[str, Any] = json.loads(self.model)
        return values

    @property
    def null(self) -> Tensor | None:
        """The tokens of a row without a condition, `(n, d)`."""
        if not self.null_tokens or self.token_dim is None:
            return None
        flat = np.frombuffer(base64.b64decode(self.null_tokens), dtype="<f4").copy()
        return torch.from_numpy(flat).view(-1, self.token_dim)


def packed(tokens: Tensor) -> str:
    """Tokens `(n, d)` as `DiffusersConfig.null_tokens` holds them."""
    return base64.b64encode(tokens.detach().cpu().numpy().astype("<f4").tobytes()).decode()
