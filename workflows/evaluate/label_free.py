"""The figures of an evaluation that need no labels: every set of captioned pictures has them.

They say how well pictures fit their prompts, how far they are from real ones, how much they differ, how well the model
knows pictures that it was not trained on, and whether it copies those that it was. Each comes with the interval in
which it would lie if other pictures had been drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from workflows.data.dataset import Dataset
from workflows.evaluate.captions import Real, real_of
from workflows.evaluate.jobs import titles
from workflows.evaluate.measure import HEADLINE, Drawn
from workflows.evaluate.metrics.estimate import Estimate, estimate, mean_of, plain
from workflows.evaluate.metrics.fidelity import LEAST, fidelity_estimates, frechet, moments
from workflows.evaluate.metrics.held_out_loss import HeldOutLoss, held_out_loss
from workflows.evaluate.metrics.matcher import Eyes
from workflows.evaluate.metrics.matching import Candidates, Matched, judged_by, match
from workflows.evaluate.metrics.neighbours import Neighbours, draw_neighbours, find_neighbours
from workflows.evaluate.metrics.scores import diversities, diversity
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.real import some, some_captions
from workflows.model.model import ModelPackage
from workflows.options.guidance import KINDS
from workflows.runtime.progress import Progress

_KNOWS: Final = 3.0
"""A judge whose retrieval of real pictures is not this many times chance knows little."""
_HELPS: Final = 0.5
"""A gradient helps where its pictures are right at least this often, relative to the headline's."""


@final
@dataclass(frozen=True)
class Ruler:
    """What drawn pictures are measured with: the same for all of them.

    Attributes:
        eyes: the judges, the independent one first.
        candidates: captions among which a prompt is looked for.
        real: held-out pictures of the same captions.
    """

    eyes: tuple[Eyes, ...]
    candidates: Candidates
    real: Real

    @staticmethod
    def of(dataset: Dataset, prompts: Prompts, eyes: Sequence[Eyes]) -> Ruler:
        """The ruler for some prompts."""
        real = real_of(dataset, prompts)
        captions = [*real.split.captions, *some_captions(dataset, "held_out")]
        return Ruler(tuple(eyes), Candidates.of(captions, [*prompts.texts, *real.texts]), real)

    def match(self, images: NDArray[np.uint8], texts: Sequence[str], eyes: Eyes | None = None) -> Matched:
        """Compares pictures with captions, by the eyes of one judge; the independent one by default."""
        return match(self.eyes[0] if eyes is None else eyes, images, texts, self.candidates)

    def matched(self, drawn: Drawn) -> Matched:
        """Compares drawn pictures with their prompts, by the independent judge."""
        return self.match(drawn.images, drawn.job.prompts.texts)

    @cached_property
    def sees(self) -> bool:
        """Whether the independent judge knows real pictures by their captions better than by guessing."""
        return self.candidates.comparable and self.match(self.real.split.images, self.real.texts).above_chance


def headline_figures(
    drawn: Drawn, ruler: Ruler, package: ModelPackage, dataset: Dataset, most: int, folder: Path, seed: int
) -> dict[str, Any]:
    """The figures of pictures that were drawn with one kind of guidance.

    Args:
        drawn: the pictures.
        ruler: to measure with.
        package: the model.
        dataset: of its training.
        most: training pictures among which copies are looked for.
        folder: for `neighbours.png`.
        seed: of the noise of the held-out loss.

    Returns:
        `retrieval`, `retrieval_top5` by each judge, with `_real` of real pictures and `retrieval_chance`; `clip_score`,
        `clip_fd`, `clip_kd`, `mind`, `precision`, `recall`, `density`, `coverage`, `diversity`, `held_out_loss`,
        `share_of_copies`; `intervals`, `nearest`, `loss_by_level`, `judges`, `compared`, and `not_measured` with why.
    """
    found: dict[str, Estimate] = {}
    missing: dict[str, str] = {}
    more: dict[str, Any] = {}
    for place, eyes in enumerate(ruler.eyes):
        found |= _fit(drawn, ruler, eyes, "" if place == 0 else f"_{eyes.name}", more, missing)
        found |= _distances(drawn, ruler, eyes, missing)
    loss = held_out_loss(package, some(dataset, "held_out", 2 * len(drawn.images)), seed)
    near = find_neighbours(drawn.images, dataset, most)
    draw_neighbours(folder / "neighbours.png", near, drawn.images, dataset)
    found |= {"held_out_loss": loss.estimate(), "share_of_copies": near.share_of_copies}
    if not near.known:
        missing["share_of_copies"] = "too few real pictures say how near an honest one may be"
    values = plain(found) | more
    return (
        values
        | _beside(loss, near)
        | {
            "judges": judged_by(ruler.eyes),
            "compared": {"drawn": len(drawn.images), "held_out": len(ruler.real.texts), "train": near.compared},
            "not_measured": missing,
        }
    )


def _fit(
    drawn: Drawn, ruler: Ruler, eyes: Eyes, suffix: str, more: dict[str, Any], missing: dict[str, str]
) -> dict[str, Estimate]:
    """How well pictures fit their prompts, in the eyes of one judge, beside what real pictures reach."""
    texts, real = drawn.job.prompts.texts, ruler.real
    here, there = ruler.match(drawn.images, texts, eyes), ruler.match(real.split.images, real.texts, eyes)
    more[f"{eyes.name}_score_real"] = float(there.scores.mean())
    found = {f"{eyes.name}_score": mean_of(here.scores)}
    if not ruler.candidates.comparable:
        missing["retrieval"] = "all captions are equal: there is no wrong one"
        return found
    more |= {f"retrieval_real{suffix}": float(there.first.mean()), "retrieval_chance": here.chance}
    return found | here.estimates(suffix)


def _distances(drawn: Drawn, ruler: Ruler, eyes: Eyes, missing: dict[str, str]) -> dict[str, Estimate]:
    real, here = eyes.pictures(ruler.real.split.images), eyes.pictures(drawn.images)
    if min(len(real), len(here)) < LEAST:
        missing["clip_fd"] = f"{len(real)} held-out and {len(here)} drawn pictures: two of each are the least"
        return {}
    if not eyes.shared:
        there, ours = moments(real), moments(here)
        whole = frechet(there, ours)
        found = {f"{eyes.name}_fd": estimate(whole, lambda rows: frechet(there, ours[rows]), len(ours))}
    else:
        found = fidelity_estimates(real, here)
    spread = diversities(here, drawn.job.prompts.combinations.tolist())
    if not len(spread):
        missing["diversity"] = "no prompt was drawn twice"
        return found
    return found | {"diversity" if eyes.shared else f"diversity_{eyes.name}": mean_of(spread)}


def _beside(loss: HeldOutLoss, near: Neighbours) -> dict[str, Any]:
    return {"loss_by_level": loss.by_level(), "nearest": near.figures()}


def by_kind(
    drawn: Mapping[str, Drawn], scales: Mapping[float, Drawn], ruler: Ruler
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How often the pictures of every kind of guidance and at every scale show what was asked.

    Returns:
        `retrieval_KIND` and `retrieval_at_scale`, `score_at_scale`, `diversity_at_scale`; and the jobs with a gradient
        that do not help: no better than guessing, or less than half as often right as the headline.
    """
    eyes = ruler.eyes[-1]
    seen = {name: ruler.matched(found) for name, found in drawn.items() if name != "none"}
    steps = {f"{scale:g}": found for scale, found in scales.items()}
    figures: dict[str, Any] = {
        f"{eyes.name}_score_at_scale": {
            scale: float(ruler.match(found.images, found.job.prompts.texts, eyes).scores.mean())
            for scale, found in steps.items()
        },
        "diversity_at_scale": {
            scale: diversity(eyes.pictures(found.images), found.job.prompts.combinations.tolist())
            for scale, found in steps.items()
        },
    }
    if not ruler.candidates.comparable:
        return figures, ()
    figures["retrieval_at_scale"] = {scale: float(ruler.matched(found).first.mean()) for scale, found in steps.items()}
    figures |= {f"retrieval_{name}": float(one.first.mean()) for name, one in seen.items() if name != HEADLINE}
    return figures, tuple(name for name, one in seen.items() if _gradient(drawn[name]) and not _helps(one, seen))


def _gradient(drawn: Drawn) -> bool:
    return any(KINDS[kind].gradient for kind in drawn.job.guidance.kinds)


def _helps(one: Matched, seen: Mapping[str, Matched]) -> bool:
    headline = seen[HEADLINE]
    return one.above_chance and one.first.mean() >= _HELPS * headline.first[: len(one.first)].mean()


def left_out(asked: Any, helpless: Sequence[str]) -> str:
    """A sentence for pages and pictures about kinds of guidance that do not help; empty where all do."""
    names = [titles(asked)[name].replace("\n", " ") for name in helpless]
    return f" Left out, as they do not show the prompt: {', '.join(names)}." if names else ""


def warn(figures: Mapping[str, Any], progress: Progress) -> None:
    """Says in plain words what the figures cannot show, and what they warn of."""
    for what, why in figures["not_measured"].items():
        progress.log(f"{what} is not measured: {why}")
    chance = figures.get("retrieval_chance", 0.0)
    if figures.get("retrieval_real", 1.0) < _KNOWS * chance:
        progress.log(
            f"the judge finds the caption of a real held-out picture in {figures['retrieval_real']:.0%}, by chance "
            f"{chance:.1%}: figures about prompts say little; more pictures, or captions that say more, would help"
        )
    if figures["nearest"]["remembers"]:
        progress.log(
            f"{figures['share_of_copies']:.0%} of the drawn pictures copy a training picture (see neighbours.png): "
            f"give it more pictures, or train it for fewer steps"
        )
