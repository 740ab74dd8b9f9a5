"""Every figure of one model: `raverse evaluate --model`.

What the job's stage leaves out for its cost is here: bits per dimension, the floor of CLIP-FD, and the speed.
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

from diffusion_core.likelihood import bits_per_dim, elbo_terms
from diffusion_core.spacing import trailing
from workflows.config.schema import EvaluateConfig, RunConfig
from workflows.data.dataset import Dataset, Split
from workflows.data.pixels import to_data
from workflows.errors import InvalidData
from workflows.evaluate.captions import ask_captions
from workflows.evaluate.label_free import Ruler, headline_figures, warn
from workflows.evaluate.measure import HEADLINE, Drawn, asked_for, image_vectors
from workflows.evaluate.metrics.fidelity import LEAST, clip_fd, fidelity
from workflows.evaluate.metrics.judge import judge_accuracy, train_judge
from workflows.evaluate.metrics.matcher import ClipEyes, Eyes, train_matcher
from workflows.evaluate.metrics.scores import accuracy
from workflows.evaluate.pictures import Column, draw_grid
from workflows.evaluate.prompts import ask
from workflows.evaluate.real import some
from workflows.evaluate.sampling import SampleJob, sample_jobs
from workflows.evaluate.vectors import measure_vectors
from workflows.model.model import ModelPackage
from workflows.options.guidance import NEUTRAL_SETTINGS, Guidance
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
        dataset: real samples to compare with.
        progress: told about finished samples.

    Raises:
        InvalidBundle: the package was changed.
        InvalidData: the data holds samples of another shape than the model draws.
        TrackingUnreachable: the store cannot be used; the results stay on disk.
    """
    package = ModelPackage.load(source.folder, "cuda" if torch.cuda.is_available() else "cpu")
    check_shape(package, dataset)
    folder = config.run_folder / "evaluations" / source.label
    folder.mkdir(parents=True, exist_ok=True)
    if package.rows.drawable:
        figures = _pictures(config, source, package, dataset, folder, progress)
    else:
        figures = measure_vectors(config.evaluate, dataset, source.folder, folder, progress)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    log_results(config, source, folder, figures)
    return EvaluationReport(folder, figures)


def _pictures(
    config: RunConfig, source: ModelSource, package: ModelPackage, dataset: Dataset, folder: Path, progress: Progress
) -> dict[str, Any]:
    """The figures of a model of pictures, which the judge of classes sees too where samples have labels."""
    asked, labelled = config.evaluate, bool(dataset.info.attributes)
    job = SampleJob(
        (ask if labelled else ask_captions)(dataset, asked.num_prompts, asked.seed),
        headline_of(package, asked),
        num_steps=asked.num_steps,
    )
    started = time.monotonic()
    (images,) = sample_jobs(source.folder, [job], asked.batch_size, progress, asked.workers)
    seconds = time.monotonic() - started
    judge = train_judge(dataset, asked.seed) if labelled else None
    drawn = Drawn(job, images, np.zeros((len(images), 0), np.int64) if judge is None else judge(images))
    progress.log("measuring")
    clip = package.scorer()
    eyes: list[Eyes] = [train_matcher(dataset, asked.seed)]
    if clip is not None:
        eyes.append(ClipEyes(clip))
    ruler = Ruler.of(dataset, job.prompts, eyes)
    figures = headline_figures(drawn, ruler, package, dataset, asked.compare_rows, folder, asked.seed)
    if clip is not None:
        figures |= _floor(clip, drawn, dataset, ruler)
    if package.shape == package.rows.shape:
        # Of latents the bound would be one of latents, which compares with nothing.
        figures["bits_per_dim"] = _bits(config, package, some(dataset, "held_out", asked.bits_rows))
    if judge is not None:
        figures["accuracy"] = accuracy(drawn.judged, drawn.job.prompts.targets, dataset.info)
        figures["judge_accuracy"] = judge_accuracy(judge, dataset)
    figures["images_per_second"] = len(images) / seconds
    warn(figures, progress)
    _draw_samples(folder / "samples.png", drawn, judged=labelled)
    return figures


def headline_of(package: ModelPackage, asked: EvaluateConfig) -> Guidance:
    """The guidance of the headline figures; of a model that reads no text, none.

    What the section leaves out is left out, also where the model has a setting of its own for it.
    """
    if HEADLINE not in package.guidance:
        return Guidance.of("none")
    return Guidance.of(HEADLINE).over(asked.guidance_settings).over(NEUTRAL_SETTINGS)


def check_shape(package: ModelPackage, dataset: Dataset) -> None:
    """Compares the shape of what a model draws with that of the data.

    Raises:
        InvalidData: they differ.
    """
    if package.rows.shape != dataset.info.rows.shape:
        raise InvalidData(
            f"the model draws {package.rows.name} of shape {package.rows.shape}, {dataset.info.source} holds "
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


def _floor(clip: Clip, drawn: Drawn, dataset: Dataset, ruler: Ruler) -> dict[str, float]:
    """CLIP-FD of as many training pictures: what a perfect model would reach. Labelled ones in the same mixture."""
    count = len(drawn.images)
    if dataset.info.attributes:
        prompts = drawn.job.prompts
        real, train = (image_vectors(asked_for(dataset, prompts, name).images, clip) for name in ("held_out", "train"))
        train = train[np.random.default_rng(0).permutation(len(train))[:count]]
        spreads = {**fidelity(real, image_vectors(drawn.images, clip))}
    else:
        real = image_vectors(ruler.real.split.images, clip)
        train, spreads = image_vectors(some(dataset, "train", count).images, clip), {}
    if min(len(real), len(train)) < LEAST:
        return spreads
    return spreads | {"clip_fd_real": clip_fd(real, train)}


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


def _draw_samples(path: Path, drawn: Drawn, *, judged: bool) -> None:
    rows = np.arange(min(_GRID_ROWS, len(drawn.images)))
    (kind,) = drawn.job.guidance.rows
    column = Column(kind.title.replace("-", "-\n", 1), drawn.images[rows], drawn.right[rows] if judged else None)
    caption = "red frame: not as asked" if judged else ""
    draw_grid(path, drawn.job.prompts.first(len(rows)).texts, [column], caption)
