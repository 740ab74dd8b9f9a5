"""Evaluation where samples have captions but no labels: no judge can be trained, so CLIP alone compares.

The figures say how well pictures fit their prompts and how much they differ. They are no accuracy, and none is
reported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workflows.config.schema import EvaluateConfig
from workflows.data.dataset import Dataset
from workflows.evaluate.jobs import all_jobs, compared_scales, grid, offered, titles
from workflows.evaluate.measure import HEADLINE, Drawn, image_vectors, spread
from workflows.evaluate.metrics.scores import clip_score, diversity
from workflows.evaluate.pictures import draw_grid
from workflows.evaluate.prompts import Prompts
from workflows.evaluate.sampling import sample_jobs
from workflows.package.reference import PACKAGE
from workflows.runtime.progress import Progress
from workflows.towers.clip import Clip, load_clip


def evaluate_unlabelled(
    asked: EvaluateConfig, dataset: Dataset, clip_folder: Path, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Draws pictures for held-out captions with every kind of guidance but the class, and scores them with CLIP.

    Args:
        asked: the `evaluate` section.
        dataset: gives held-out captions and pictures.
        clip_folder: the towers.
        folder: holds `package/`; for `metrics.json` and `samples.png`.
        progress: told about finished pictures.

    Returns:
        `clip_score` of the headline, `retrieval` (share of its pictures whose own prompt is the closest),
        `clip_score_real` and `retrieval_real` of held-out pictures, `clip_score_KIND`, `clip_score_at_scale`,
        `diversity_at_scale`, and `judged`: false.
    """
    jobs = all_jobs(asked, ask_captions(dataset, asked.num_prompts, asked.seed), labelled=False)
    jobs = offered(jobs, folder / PACKAGE)
    progress.log("no labels: pictures are scored by CLIP, not judged")
    images = sample_jobs(folder / PACKAGE, list(jobs.values()), asked.batch_size, progress, asked.workers)
    clip = load_clip(clip_folder)
    drawn = {
        name: Drawn(job, part, np.zeros((len(part), 0), np.int64))
        for (name, job), part in zip(jobs.items(), images, strict=True)
    }
    scales = compared_scales(asked, drawn)
    score, retrieval = _fit(drawn[HEADLINE].images, drawn[HEADLINE].job.prompts.texts, clip)
    figures: dict[str, Any] = {"clip_score": score, "retrieval": retrieval} | _real(dataset, clip, len(images[0]))
    for kind in (kind for kind in titles(asked) if kind in drawn and kind not in (HEADLINE, "none")):
        figures[f"clip_score_{kind}"] = _fit(drawn[kind].images, drawn[kind].job.prompts.texts, clip)[0]
    figures["clip_score_at_scale"] = {
        f"{w:g}": _fit(found.images, found.job.prompts.texts, clip)[0] for w, found in scales.items()
    }
    figures["diversity_at_scale"] = {f"{w:g}": spread(found, clip) for w, found in scales.items()}
    figures["judged"] = False
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    caption = f"DDIM, {asked.num_steps} steps, one seed per row. Not judged: the data have no labels."
    draw_grid(folder / "samples.png", *grid(asked, drawn, judged=False), caption)
    return figures


def ask_captions(dataset: Dataset, count: int, seed: int) -> Prompts:
    """Asks for `count` pictures of held-out captions, each at least twice where that leaves any choice."""
    rng = np.random.default_rng(seed)
    texts = sorted({captions[0] for captions in dataset.read("held_out").captions})
    order = rng.permutation(len(texts))[: max(1, count // 2)]
    chosen = order[np.arange(count) % len(order)].astype(np.int64)
    first = int(rng.integers(2**32))
    return Prompts(
        tuple(texts[number] for number in chosen),
        chosen,
        np.zeros((count, 0), np.int64),
        tuple(first + row for row in range(count)),
        np.zeros(count, np.bool_),
    )


def _real(dataset: Dataset, clip: Clip, limit: int) -> dict[str, float]:
    """The same figures of held-out pictures: what a perfect model would reach."""
    split = dataset.read("held_out", limit)
    texts = tuple(captions[0] for captions in split.captions)
    score, retrieval = _fit(split.images, texts, clip)
    numbers = {text: number for number, text in enumerate(texts)}
    figures = {"clip_score_real": score, "retrieval_real": retrieval}
    spread_real = diversity(image_vectors(split.images, clip), [numbers[text] for text in texts])
    return figures if np.isnan(spread_real) else figures | {"diversity_real": spread_real}


def _fit(images: Any, texts: tuple[str, ...], clip: Clip) -> tuple[float, float]:
    """CLIP score, and the share of pictures that are closest to their own text among all different ones."""
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    encoded = torch.cat([clip.text.encode(part).pooled for part in _chunks(list(distinct))])
    own = torch.tensor([distinct[text] for text in texts])
    vectors = image_vectors(images, clip)
    right = (vectors @ encoded.T).argmax(dim=1) == own
    return clip_score(vectors, encoded[own]), float(right.float().mean())


def _chunks(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + 256] for start in range(0, len(texts), 256)]
