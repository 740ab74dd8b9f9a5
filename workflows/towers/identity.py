"""Which towers made an embedding; readable without loading them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

from workflows.errors import InvalidClip

IDENTITY_FILE: Final = "clip.json"


@final
@dataclass(frozen=True)
class ClipIdentity:
    """What determines an embedding; written as `clip.json` beside the weights.

    Attributes:
        model: name of the architecture.
        source: where the weights came from: `train`, `local-dir:PATH` or `MODEL/TAG`.
        weights_sha256: of the safetensors file.
        config_sha256: of open_clip's configuration file, which says how the weights are used.
        tokenizer: class of the tokenizer.
        context_length: n, tokens per caption.
        width: d, width of the token features.
        embed_dim: e, width of the shared space.
        image_size: (h, w) that the image tower takes.
        image_mean: subtracted from each channel in [0, 1].
        image_std: each channel is divided by it.
    """

    model: str
    source: str
    weights_sha256: str
    config_sha256: str
    tokenizer: str
    context_length: int
    width: int
    embed_dim: int
    image_size: tuple[int, int]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def save(self, folder: Path) -> None:
        """Writes `clip.json`."""
        (folder / IDENTITY_FILE).write_text(json.dumps(asdict(self), indent=2))

    @staticmethod
    def load(folder: Path) -> ClipIdentity:
        """Reads `clip.json`.

        Raises:
            InvalidClip: there is none, or its fields are others.
        """
        try:
            values: dict[str, Any] = json.loads((folder / IDENTITY_FILE).read_text())
            frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return ClipIdentity(**frozen)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InvalidClip(f"no usable {IDENTITY_FILE} in {folder} ({error}): run `raverse clip`") from None
