"""What `raverse sample` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from workflows.errors import InvalidRequest
from workflows.options.guidance import DEFAULT_GUIDANCE, Guidance
from workflows.options.samplers import DEFAULT_SAMPLER

MOST_PICTURES: Final = 256


@final
@dataclass(frozen=True)
class DrawRequest:
    """Pictures to draw; settings that are left open are the package's own.

    Attributes:
        prompt: what they show.
        num: pictures; picture i has seed `seed + i`.
        seed: of the first.
        sampler: its name.
        steps: of the sampler.
        eta: of DDIM.
        guidance: kinds and settings.
        negative: what they do not show.
        init: a picture to start from.
        strength: share of the steps made from `init`; None: `DEFAULT_STRENGTH`.
        mask: a picture, white where `init` is drawn anew and black where it is kept.
        invert: a picture to take the starting noise from.
        invert_prompt: what `invert` shows; None: the prompt.
    """

    prompt: str
    num: int = 1
    seed: int = 0
    sampler: str = DEFAULT_SAMPLER
    steps: int | None = None
    eta: float = 0.0
    guidance: Guidance = DEFAULT_GUIDANCE
    negative: str | None = None
    init: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    invert: Path | None = None
    invert_prompt: str | None = None

    def __post_init__(self) -> None:
        """Refuses what does not fit together; names the field."""
        if not 1 <= self.num <= MOST_PICTURES:
            raise InvalidRequest(f"found num = {self.num}, wanted 1..{MOST_PICTURES}", "num")
        if self.strength is not None and self.init is None:
            raise InvalidRequest("--strength needs a picture to start from: give --init IMAGE", "strength")
        if self.mask is not None and self.init is None:
            raise InvalidRequest("--mask needs the picture that it covers: give --init IMAGE", "mask")
        if self.mask is not None and self.strength is not None:
            raise InvalidRequest("--mask draws what it covers from noise: leave --strength out", "strength")
        if self.invert_prompt is not None and self.invert is None:
            raise InvalidRequest("--invert-prompt describes the picture of --invert: give --invert IMAGE", "invert")
        if self.invert is not None:
            self._check_inversion()

    def _check_inversion(self) -> None:
        if self.init is not None:
            raise InvalidRequest("--invert and --init both say where to start: give one", "invert")
        if self.num != 1:
            raise InvalidRequest(f"one picture has one latent: found num = {self.num}, wanted 1", "num")
        if self.sampler != "ddim" or self.eta != 0.0:
            raise InvalidRequest("only DDIM with eta 0 can be inverted: leave --sampler and --eta out", "sampler")
