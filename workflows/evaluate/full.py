"""Every figure of one model: `raverse evaluate --model`.

What the job's stage leaves out for its cost is here: bits per dimension, nearest training pictures, and the speed.
Files are written before MLflow is asked, so that they stay when the store cannot be reached.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from diffusion_core.likelihood import bits_per_dim, elbo_terms
from diffusion_core.spacing import trailing
from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset, Split
from workflows.data.pixels import to_data
from workflows.errors import InvalidData
from workflows.evaluate.measure import HEADLINE, Drawn, asked_for, image_vectors, spread, text_vectors
from workflows.evaluate.metrics.fidelity import clip_fd, fidelity
from workflows.evaluate.metrics.judge import judge_accuracy, train_judge
from workflows.evaluate.metrics.neighbours import Neighbours, draw_neighbours, nearest
from workflows.evaluate.metrics.scores import accuracy, clip_score
from workflows.evaluate.pictures import Column, draw_grid
from workflows.evaluate.prompts import ask
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.model.model import ModelPackage
from workflows.options.guidance import NEUTRAL_SETTINGS, Guidance
from workflows.package.files import check_draws_pictures
from workflows.package.source import ModelSource
from workflows.runtime.progress import Progress
from workflows.towers.clip import Clip
from workflows.tracking.run import flatten, tracked_run

_GRID_ROWS = 10


@final
@dataclass(frozen=True)
class EvaluationReport:
    """What was found, and where it is written."""

    folder: Path
    figures: dict[str, Any]

    def text(self) -> str:
        """A line per figure."""
        rows = dict(flatten(self.figures))
        width = max(len(name) for name in rows)
        lines = [f"{name:<{width}}  {value:.5g}" for name, value in rows.items() if isinstance(value, int | float)]
        return "\n".join([*lines, f"pictures and figures: {self.folder}"])


def evaluate_model(config: RunConfig, source: ModelSource, dataset: Dataset, progress: Progress) -> EvaluationReport:
    """Measures a model on the present Ray session.

    Args:
        config: its `evaluate` section says how much is drawn, and how.
        source: the model.
        dataset: real pictures to compare with.
        progress: told about finished pictures.

    Raises:
        InvalidBundle: the package was changed.
        InvalidData: the data holds pictures of another shape than the model draws.
        TrackingUnreachable: the store cannot be used; the results stay on disk.
    """
    package = ModelPackage.load(source.folder, "cuda" if torch.cuda.is_available() else "cpu")
    check_shape(package, dataset)
    folder = config.run_folder / "evaluations" / source.label
    folder.mkdir(parents=True, exist_ok=True)
    asked = config.evaluate
    job = SampleJob(
        ask(dataset, asked.num_prompts, asked.seed),
        # What the section leaves out is left out, also where the model has a setting of its own for it.
        Guidance.of(HEADLINE).over(asked.guidance_settings).over(NEUTRAL_SETTINGS),
        num_steps=asked.num_steps,
    )
    started = time.monotonic()
    (images,) = sample_jobs(source.folder, [job], asked.batch_size, progress, asked.workers)
    seconds = time.monotonic() - started
    judge = train_judge(dataset, asked.seed)
    drawn = Drawn(job, images, judge(images))
    progress.log("measuring")
    figures = _figures(config, package, drawn, dataset, folder)
    figures["judge_accuracy"] = judge_accuracy(judge, dataset)
    figures["images_per_second"] = len(images) / seconds
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    _draw_samples(folder / "samples.png", drawn)
    log_results(config, source, folder, figures)
    return EvaluationReport(folder, figures)


def check_shape(package: ModelPackage, dataset: Dataset) -> None:
    """Compares the shape of a model's pictures with that of the data.

    Raises:
        InvalidData: they differ.
        InvalidConfig: the model draws vectors, which the evaluate stage of a job measures.
    """
    check_draws_pictures(package.card, package.folder.name)
    if package.rows.shape != dataset.info.rows.shape:
        raise InvalidData(
            f"the model draws pictures of shape {package.rows.shape}, {dataset.info.source} holds "
            f"{dataset.info.rows.shape}: give the --config that the model was trained with"
        )


def log_results(config: RunConfig, source: ModelSource, folder: Path, figures: dict[str, Any]) -> None:
    """Logs a folder of results as a run of its own.

    Raises:
        TrackingUnreachable: the store cannot be used; the results stay on disk.
    """
    with tracked_run(config, folder / "mlflow_run.json") as run:
        run.log_params({"model": source.label, "package": str(source.folder)})
        run.log_metrics(figures)
        for file in sorted(folder.iterdir()):
            if file.suffix in (".png", ".csv") or file.name == "metrics.json":
                run.log_file(file)


def _figures(config: RunConfig, package: ModelPackage, drawn: Drawn, dataset: Dataset, folder: Path) -> dict[str, Any]:
    clip, held_out, train = package.scorer(), dataset.read("held_out"), dataset.read("train")
    found = nearest(drawn.images, train.images, held_out.images)
    draw_neighbours(folder / "neighbours.png", found, drawn.images, train.images)
    figures = {} if clip is None else _scored(clip, drawn, dataset)
    if package.shape == package.rows.shape:
        # Of latents the bound would be one of latents, which compares with nothing.
        figures["bits_per_dim"] = _bits(config, package, held_out)
    return figures | {
        "accuracy": accuracy(drawn.judged, drawn.job.prompts.targets, dataset.info),
        "nearest": _shares(found),
    }


def _scored(clip: Clip, drawn: Drawn, dataset: Dataset) -> dict[str, Any]:
    """What CLIP sees; real pictures come in the mixture that was asked for."""
    prompts, vectors = drawn.job.prompts, image_vectors(drawn.images, clip)
    real, train = (image_vectors(asked_for(dataset, prompts, name).images, clip) for name in ("held_out", "train"))
    return {
        **fidelity(real, vectors),
        "clip_fd_real": _fd_of_real(train, real, len(drawn.images)),
        "clip_score": clip_score(vectors, text_vectors(drawn, clip)),
        "diversity": spread(drawn, clip),
    }


def _fd_of_real(train: Tensor, real: Tensor, count: int) -> float:
    """What as many training pictures reach: the floor of CLIP-FD."""
    return clip_fd(real, train[np.random.default_rng(0).permutation(len(train))[:count]])


def _bits(config: RunConfig, package: ModelPackage, held_out: Split) -> dict[str, float]:
    """The variational bound of held-out pictures under their own captions, over `bits_levels` levels."""
    asked = config.evaluate
    rows = held_out.rows(np.arange(min(asked.bits_rows, len(held_out))))
    x0 = to_data(rows.images)
    condition = package.condition([texts[0] for texts in rows.captions], "direct")
    levels = trailing(package.schedule, min(asked.bits_levels, package.schedule.num_levels))
    terms = elbo_terms(package.denoiser, x0.to(package.device), condition, seeds=asked.seed, levels=levels)
    bits = bits_per_dim(terms)
    return {"mean": bits.mean, "standard_error": bits.standard_error}


def _shares(found: Neighbours) -> dict[str, float]:
    return {
        "median_distance": float(np.median(found.distance)),
        "median_distance_held_out": float(np.median(found.distance_real)),
        "share_of_copies": found.share_of_copies,
    }


def _draw_samples(path: Path, drawn: Drawn) -> None:
    rows = np.arange(min(_GRID_ROWS, len(drawn.images)))
    column = Column("classifier-\nfree", drawn.images[rows], drawn.right[rows])
    draw_grid(path, drawn.job.prompts.first(len(rows)).texts, [column], "red frame: not as asked")
