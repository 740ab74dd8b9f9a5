"""The README of a registered version: what it draws, how well, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from workflows.options.guidance import DEFAULT_GUIDANCE, Guidance
from workflows.options.samplers import DEFAULT_SAMPLER, SAMPLERS
from workflows.package.files import PackageCard

_FIGURES: Final = {
    "accuracy": "judged as asked, of combinations that were trained on",
    "accuracy_unseen": "judged as asked, of combinations that were not",
    "direct_accuracy": "the same without guidance",
    "classifier_prompt_accuracy": "the same by classifier guidance of the unconditional model",
    "retrieval": "prompts that a judge finds among captions by their pictures",
    "retrieval_top5": "the same among its first five",
    "retrieval_real": "the same of real pictures",
    "retrieval_chance": "the same by guessing",
    "energy_distance": "energy distance to held-out samples, classifier-free",
    "energy_distance_real": "energy distance of training samples to them",
    "clip_fd": "CLIP-FD to held-out pictures (no FID: its own CLIP, not Inception)",
    "clip_score": "CLIP score",
    "clip_score_real": "CLIP score of real pictures",
    "held_out_loss": "loss on held-out samples, of v",
    "share_of_copies": "drawn samples that copy a training sample; 0.01 is honest",
}
# What MLflow's store takes as a description.
_LONGEST: Final = 5000


def model_card(name: str, card: PackageCard, figures: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Markdown, short enough for a version's description.

    Args:
        name: of the registered model.
        card: of the package.
        figures: of the evaluation.
        tags: of the version.
    """
    guidance = DEFAULT_GUIDANCE.over(card.defaults.guidance)
    params = {"guidance_scale": guidance.scale, "sampler": DEFAULT_SAMPLER, "seed": 7}
    call = f"model.predict(table, params={json.dumps(params)})"
    ends = figures.get("intervals", {})
    rows = [f"| {what} | {_shown(figures[key], ends.get(key))} |" for key, what in _FIGURES.items() if key in figures]
    example = next(iter(card.candidate_captions), "")
    lines = [
        f"# {name}",
        "",
        f"Draws {card.rows.description} of `{card.source}`"
        + (f" from prompts such as *{example}*." if example else "."),
        "The sample grid is `model_card/samples.png` among the run's artifacts.",
        "",
        "| figure | value |",
        "| --- | --- |",
        *rows,
        "",
        *_warnings(card, figures),
        "```python",
        "import mlflow, pandas",
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")',
        f'table = pandas.DataFrame({{"prompt": ["{example}"]}})',
        card.rows.usage.format(call),
        "```",
        "",
        f"Data {card.data_hash[:16]}, package {card.hash[:16]}, code {tags.get('git_commit', 'unknown')[:16]}.",
        f"Defaults: {card.defaults.num_steps} {SAMPLERS[DEFAULT_SAMPLER].title} steps, {_described(guidance)}.",
    ]
    return "\n".join(lines)[:_LONGEST]


def _warnings(card: PackageCard, figures: Mapping[str, Any]) -> list[str]:
    found = []
    if figures.get("nearest", {}).get("remembers"):
        found += ["**It copies training samples**: see `model_card/neighbours.png`.", ""]
    if card.withheld:
        found += [f"Guidance that does not help here: {', '.join(card.withheld)}.", ""]
    return found


def _shown(value: float, ends: Mapping[str, float] | None) -> str:
    return f"{value:.4g}" + (f" [{ends['low']:.3g}, {ends['high']:.3g}]" if ends else "")


def _described(guidance: Guidance) -> str:
    """Its scale, and every other setting that it holds."""
    (kind,) = guidance.rows
    further = [f"{name} {json.dumps(value)}" for name, value in guidance.further().items()]
    return ", ".join([f"{kind.title} scale {guidance.scale:g}", *further])
