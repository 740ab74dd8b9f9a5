"""What a job is about to do, before it starts: rows, steps, epochs, minutes on this machine, and what it evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from workflows.config.schema import RunConfig
from workflows.runtime.artifact import Artifact

if TYPE_CHECKING:
    from workflows.train.here import Subject
    from workflows.train.length import TrainedPart

_LOADED_TOKENS: Final = 77
_TRAINED: Final[tuple[TrainedPart, ...]] = ("clip", "denoiser", "classifier")


def outlook(config: RunConfig, data: Artifact, unfinished: Sequence[str]) -> list[str]:
    """Lines about the stages that are not finished, once the data are there.

    Times a few steps of each training in this process. Reads the captions, and no picture.
    """
    from workflows.data.dataset import Dataset
    from workflows.train.clip.fitted import fitted
    from workflows.train.here import Subject

    info = (dataset := Dataset.open(data.folder)).info
    trained_here = config.clip.source == "train"
    tokens = fitted(config.clip, dataset)[0].num_tokens if trained_here else _LOADED_TOKENS
    subject = Subject(info.rows, info.num_train, len(info.class_names), len(info.candidate_captions), tokens)
    held_out = f"{info.num_held_out:,} held out" if info.num_held_out else "none held out"
    lines = [f"data: {info.num_train:,} {info.rows.name} to train on, {held_out}"]
    lines += lengths(config, subject, unfinished)
    return [*lines, evaluated(config, labelled=bool(info.attributes))] if "evaluate" in unfinished else lines


def lengths(config: RunConfig, subject: Subject, parts: Sequence[str] = _TRAINED) -> list[str]:
    """A line for each part that is trained, with its length as far as this machine can say it."""
    from workflows.train.here import foreseen

    found = {part: foreseen(part, config, subject) for part in _TRAINED if part in parts}
    untimed = "as long as its workers take: it starts from a base, or is too large to be timed here"
    told = {part: length or untimed for part, length in found.items() if length or part != "clip"}
    return [f"{part}: {length}" for part, length in told.items()]


def evaluated(config: RunConfig, *, labelled: bool) -> str:
    """What the evaluation draws and judges."""
    asked: Any = config.evaluate
    judged = "a judge of classes, CLIP score and distances" if labelled else "retrieval, CLIP score and distances"
    return (
        f"evaluate: {asked.num_prompts} prompts with the headline's guidance, {asked.num_prompts_per_scale} at other "
        f"scales, {asked.num_prompts_per_gradient} for each kind with a gradient; judged by {judged}"
    )
