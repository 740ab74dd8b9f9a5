"""The gate: paired bootstrap intervals of what a challenger gains, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from workflows.config.schema import GateConfig
from workflows.evaluate.metrics.energy import Energy
from workflows.evaluate.metrics.estimate import bounds, resampled_rows
from workflows.evaluate.metrics.fidelity import frechet

Verdict: TypeAlias = Literal["better", "same", "worse", "unclear"]
Floats: TypeAlias = NDArray[np.float64]
_HEADINGS: Final = ("metric", "champion", "challenger", "gain", "interval", "allowed loss", "verdict")


@final
@dataclass(frozen=True)
class Seen:
    """What is seen of one version; row i of both versions is the same prompt and seed, or held-out sample.

    Attributes:
        right: by name, (n,) whether a judge sees what was asked: `accuracy` of classes, `retrieval` of prompts.
        scores: (n,) 100 cos(picture, prompt); None: nobody sees that.
        features: (n, e) features of pictures (see `fidelity.moments`); None: of vectors.
        rows: (n, d) vectors; None: of pictures.
        losses: (m,) of held-out samples; None: the versions cannot be compared by it.
        copies: (n,) whether each is a copy of a training sample; None: that was not looked for.
    """

    right: dict[str, Floats]
    scores: Floats | None = None
    features: Floats | None = None
    rows: NDArray[Any] | None = None
    losses: Floats | None = None
    copies: Floats | None = None


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
    """The table that shows why a version passes or not.

    Attributes:
        lines: a figure each.
        passed: whether no figure stands against the challenger.
        looked: sentences about what was compared, and with how much.
        unseen: sentences about what the gate could not see.
    """

    lines: tuple[Line, ...]
    passed: bool
    looked: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def text(self) -> str:
        """The table, a line per figure, and what was looked at."""
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
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*table, *self.looked, *(f"not seen: {what}" for what in self.unseen)])

    def values(self) -> dict[str, Any]:
        """The comparison as JSON-serializable values."""
        told = {"looked": list(self.looked), "unseen": list(self.unseen)}
        return {"passed": self.passed, "lines": [asdict(line) for line in self.lines]} | told

    def advice(self, gate: GateConfig) -> str:
        """What would help a version that does not pass, in words that follow `it is not promoted: `."""
        against = [line.metric for line in self.lines if line.verdict in ("worse", "unclear")]
        worse = [line.metric for line in self.lines if line.verdict == "worse"]
        if not against:
            return "no figure is better, and register.gate.require asks for one: train it longer, or on more samples"
        names = ", ".join(against)
        if "copies" in worse:
            return "it copies its training samples: give it more samples, or train it for fewer steps"
        if worse == ["held_out_loss"]:
            return (
                "it knows held-out samples less well: if it was trained for longer, it begins to learn its samples by "
                "heart, and fewer steps or more samples help; otherwise train it longer"
            )
        if worse:
            return f"it is worse in {', '.join(worse)}: train it longer, and check that its captions fit its samples"
        more = 4 * gate.num_prompts
        return (
            f"a loss of {names} cannot be ruled out with {gate.num_prompts} samples of each: compare more, with "
            f"--set register.gate.num_prompts={more}, or train it longer"
        )


def compare(
    gate: GateConfig,
    champion: Seen,
    challenger: Seen,
    real: NDArray[Any],
    ceilings: Mapping[str, float] = MappingProxyType({}),
) -> Comparison:
    """Compares two versions row by row.

    Args:
        gate: the rules.
        champion: of the present holder.
        challenger: of the new version.
        real: (m, e) features of real pictures, or (m, d) real vectors.
        ceilings: by name, the figures of real pictures. What is above counts as much: a judge that sees a prompt more
            clearly in a drawn picture than in real ones says nothing good about it.
    """
    lines: list[Line] = []
    for name, right in champion.right.items():
        allowed, ceiling = gate.allowed_drop(name), ceilings.get(name, math.inf)
        lines.append(_mean(gate, name, right, challenger.right[name], allowed, ceiling))
    if champion.scores is not None and challenger.scores is not None:
        allowed, ceiling = gate.max_clip_score_drop, ceilings.get("clip_score", math.inf)
        lines.append(_mean(gate, "clip_score", champion.scores, challenger.scores, allowed, ceiling))
    if champion.features is not None and challenger.features is not None:
        lines.append(_frechet(gate, champion.features, challenger.features, real))
    if champion.rows is not None and challenger.rows is not None:
        lines.append(_energy(gate, champion.rows, challenger.rows, real))
    if champion.losses is not None and challenger.losses is not None:
        lines.append(_loss(gate, champion.losses, challenger.losses))
    if champion.copies is not None and challenger.copies is not None:
        lines.append(_copies(gate, champion.copies, challenger.copies))
    return Comparison(tuple(lines), _passes(gate, [line.verdict for line in lines]))


def _resamples(gate: GateConfig, count: int) -> NDArray[np.int64]:
    return resampled_rows(count, gate.resamples, gate.seed)


def _mean(gate: GateConfig, name: str, a: Floats, b: Floats, allowed: float, ceiling: float = math.inf) -> Line:
    rows = _resamples(gate, len(a))
    gains = np.minimum(b[rows].mean(axis=1), ceiling) - np.minimum(a[rows].mean(axis=1), ceiling)
    gain = min(float(b.mean()), ceiling) - min(float(a.mean()), ceiling)
    return _line(gate, name, float(a.mean()), float(b.mean()), gain, gains, allowed)


def _frechet(gate: GateConfig, a: Floats, b: Floats, real: NDArray[Any]) -> Line:
    fd = frechet(real, a), frechet(real, b)
    gains = [frechet(real, a[rows]) - frechet(real, b[rows]) for rows in _resamples(gate, len(a))]
    return _line(gate, "clip_fd", *fd, fd[0] - fd[1], np.array(gains), gate.max_clip_fd_rise * fd[0])


def _energy(gate: GateConfig, a: NDArray[Any], b: NDArray[Any], real: NDArray[Any]) -> Line:
    one, other, whole = Energy(a, real), Energy(b, real), np.arange(len(a))
    found = one.of(whole), other.of(whole)
    gains = [one.of(rows) - other.of(rows) for rows in _resamples(gate, len(a))]
    allowed = max(gate.max_energy_rise * abs(found[0]), gate.least_energy_rise)
    return _line(gate, "energy_distance", *found, found[0] - found[1], np.array(gains), allowed)


def _loss(gate: GateConfig, a: Floats, b: Floats) -> Line:
    """Its noise is the same for both, so the smallest difference is sure: one within the allowance is none."""
    gains = (a - b)[_resamples(gate, len(a))].mean(axis=1)
    allowed = gate.max_loss_rise * float(a.mean())
    found = _line(gate, "held_out_loss", float(a.mean()), float(b.mean()), float((a - b).mean()), gains, allowed)
    return found if found.verdict != "worse" or found.high < -allowed else _with(found, "same")


def _copies(gate: GateConfig, a: Floats, b: Floats) -> Line:
    """A share that is honest in both versions is no loss, whatever it is."""
    gains = (a - b)[_resamples(gate, len(a))].mean(axis=1)
    found = _line(gate, "copies", float(a.mean()), float(b.mean()), float((a - b).mean()), gains, gate.max_copies_rise)
    if found.verdict == "worse" and found.high >= -gate.max_copies_rise:
        return _with(found, "same" if found.low >= -gate.max_copies_rise else "unclear")
    return found if found.verdict != "better" or found.low > gate.max_copies_rise else _with(found, "same")


def _with(line: Line, verdict: Verdict) -> Line:
    return Line(**(asdict(line) | {"verdict": verdict}))


def _line(gate: GateConfig, metric: str, a: float, b: float, gain: float, gains: Floats, allowed: float) -> Line:
    low, high = bounds(gains, gate.confidence)
    return Line(metric, a, b, gain, low, high, allowed, verdict(low, high, allowed))


def verdict(low: float, high: float, allowed: float) -> Verdict:
    """What an interval of a gain says."""
    if low > 0.0:
        return "better"
    if high < 0.0:
        return "worse"
    return "same" if low >= -allowed else "unclear"


def _passes(gate: GateConfig, verdicts: Sequence[str]) -> bool:
    sound = not {"worse", "unclear"} & set(verdicts)
    return sound and (gate.require == "not_worse" or "better" in verdicts)
