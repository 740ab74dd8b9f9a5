"""The gate: paired bootstrap intervals of what a challenger gains, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from workflows.config.schema import GateConfig
from workflows.evaluate.metrics.fidelity import frechet

Verdict: TypeAlias = Literal["better", "same", "worse", "unclear"]
_HEADINGS: Final = ("metric", "champion", "challenger", "gain", "interval", "allowed loss", "verdict")


@final
@dataclass(frozen=True)
class Seen:
    """What is seen in the pictures that one version drew; row i of both versions is the same prompt and seed.

    Attributes:
        right: (n,) whether the judge sees what was asked.
        scores: (n,) 100 cos(picture, prompt).
        features: (n, e) CLIP features (see `fidelity.moments`).
    """

    right: NDArray[np.float64]
    scores: NDArray[np.float64]
    features: NDArray[np.float64]


@final
@dataclass(frozen=True)
class Line:
    """One figure of both versions.

    Attributes:
        metric: its name.
        champion: its value for the present holder of the alias.
        challenger: its value for the new version.
        gain: by how much the challenger is better; negative where it is worse.
        low: of the gain's interval.
        high: of the gain's interval.
        allowed: loss that must be ruled out.
        verdict: `worse` if the whole interval is, `unclear` if a loss beyond `allowed` is not ruled out.
    """

    metric: str
    champion: float
    challenger: float
    gain: float
    low: float
    high: float
    allowed: float
    verdict: Verdict


@final
@dataclass(frozen=True)
class Comparison:
    """The table that shows why a version passes or not."""

    lines: tuple[Line, ...]
    passed: bool

    def text(self) -> str:
        """The table, a line per figure."""
        rows = [_HEADINGS] + [
            (
                line.metric,
                f"{line.champion:.4g}",
                f"{line.challenger:.4g}",
                f"{line.gain:+.4g}",
                f"[{line.low:+.4g}, {line.high:+.4g}]",
                f"{line.allowed:.4g}",
                line.verdict,
            )
            for line in self.lines
        ]
        widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADINGS))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def values(self) -> dict[str, Any]:
        """The comparison as JSON-serializable values."""
        return {"passed": self.passed, "lines": [asdict(line) for line in self.lines]}


def compare(gate: GateConfig, champion: Seen, challenger: Seen, real: NDArray[np.float64]) -> Comparison:
    """Compares two versions picture by picture.

    Args:
        gate: the rules.
        champion: of the present holder.
        challenger: of the new version.
        real: (m, e) features of real pictures.
    """
    n = len(champion.right)
    rows = np.random.default_rng(gate.seed).integers(0, n, (gate.resamples, n))
    fd = {name: frechet(real, seen.features) for name, seen in (("a", champion), ("b", challenger))}
    fd_gains = np.array(
        [frechet(real, champion.features[index]) - frechet(real, challenger.features[index]) for index in rows]
    )
    pairs = {
        "accuracy": (champion.right, challenger.right, gate.max_accuracy_drop),
        "clip_score": (champion.scores, challenger.scores, gate.max_clip_score_drop),
    }
    lines = [
        _line(gate, name, float(a.mean()), float(b.mean()), float((b - a).mean()), (b - a)[rows].mean(axis=1), allowed)
        for name, (a, b, allowed) in pairs.items()
    ]
    allowed = gate.max_clip_fd_rise * fd["a"]
    lines.append(_line(gate, "clip_fd", fd["a"], fd["b"], fd["a"] - fd["b"], fd_gains, allowed))
    return Comparison(tuple(lines), _passes(gate, [line.verdict for line in lines]))


def _line(
    gate: GateConfig, metric: str, a: float, b: float, gain: float, gains: NDArray[np.float64], allowed: float
) -> Line:
    tail = (1.0 - gate.confidence) / 2.0
    low, high = (float(value) for value in np.quantile(gains, (tail, 1.0 - tail)))
    return Line(metric, a, b, gain, low, high, allowed, verdict(low, high, allowed))


def verdict(low: float, high: float, allowed: float) -> Verdict:
    """What an interval of a gain says."""
    if low > 0.0:
        return "better"
    if high < 0.0:
        return "worse"
    return "same" if low >= -allowed else "unclear"


def _passes(gate: GateConfig, verdicts: list[Verdict]) -> bool:
    sound = not {"worse", "unclear"} & set(verdicts)
    return sound and (gate.require == "not_worse" or "better" in verdicts)
