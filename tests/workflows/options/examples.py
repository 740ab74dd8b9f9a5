"""A value of each setting that changes a picture, and the scale with which it does."""

from __future__ import annotations

from typing import Any, Final

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "guidance_interval": {"guidance_interval": [0.3, 3.0], "guidance_scale": 4.0},
    "guidance_rescale": {"guidance_rescale": 0.7, "guidance_scale": 4.0},
    "apg_eta": {"apg_eta": 0.0, "guidance_scale": 4.0},
    "apg_norm": {"apg_norm": 0.01, "guidance_scale": 4.0},
    "cfg_plus_plus": {"cfg_plus_plus": True, "guidance_scale": 0.5},
}
