"""Draws the pictures of an evaluation in parallel, as a Ray Data job over slices of seeds.

A task draws a fixed slice of a job's rows with one thread of its own, so the pictures are the same whatever
the number of workers, and a lost task is drawn again.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import TaskPoolStrategy

from diffusion_core.errors import NonFinite
from workflows.evaluate.prompts import Prompts
from workflows.options.guidance import Guidance
from workflows.options.samplers import DEFAULT_SAMPLER
from workflows.package.files import PackageCard
from workflows.runtime.progress import Progress
from workflows.runtime.ray_pass import run_pass

if TYPE_CHECKING:
    from workflows.model.model import ModelPackage


@final
@dataclass(frozen=True)
class SampleJob:
    """Pictures to draw, all with one kind of guidance.

    Attributes:
        prompts: one row per picture.
        guidance: kinds and settings; what it leaves open are the package's own.
        by_label: the classifier is asked for the class instead of the prompt.
        sampler: its name.
        num_steps: of the sampler.
        eta: of DDIM.
        spacing: which levels the sampler visits; None: as the model does.
    """

    prompts: Prompts
    guidance: Guidance
    by_label: bool = False
    sampler: str = DEFAULT_SAMPLER
    num_steps: int = 50
    eta: float = 0.0
    spacing: str | None = None

    def part(self, start: int, stop: int) -> SampleJob:
        """Some of the rows."""
        return replace(self, prompts=self.prompts.rows(np.arange(start, min(stop, len(self.prompts)))))


def sample_jobs(
    package: Path, jobs: Sequence[SampleJob], batch_size: int, progress: Progress, workers: int = 0
) -> list[NDArray[Any]]:
    """Draws every job's pictures.

    Args:
        package: folder of the model.
        jobs: what to draw; slow ones first keep all workers busy to the end.
        batch_size: rows of a task.
        progress: told about finished pictures.
        workers: tasks at once; 0: as many as the cluster has CPUs.

    Returns:
        (n, c, h, w) uint8 for each job; of vectors (n, d) float32, normalised.

    Raises:
        RaverseError: what a task says, such as `NonFinite` for a model that gives no picture.
    """
    kind = PackageCard.load(package).rows
    places = [(number, start) for number, job in enumerate(jobs) for start in range(0, len(job.prompts), batch_size)]
    items = [
        {"place": place, "package": str(package), "job": pickle.dumps(jobs[number].part(start, start + batch_size))}
        for place, (number, start) in enumerate(places)
    ]
    drawn: dict[int, NDArray[Any]] = {}
    progress.start(sum(len(job.prompts) for job in jobs), "pictures")
    compute = TaskPoolStrategy(size=workers or None)
    for row in run_pass(items, lambda rows: rows.map(_draw_item, compute=compute, **_resources())):
        drawn[row["place"]] = np.frombuffer(row["pixels"], kind.dtype).reshape(-1, *kind.shape)
        progress.advance(sum(len(part) for part in drawn.values()))
    return [
        np.concatenate([drawn[place] for place, (owner, _) in enumerate(places) if owner == number])
        for number in range(len(jobs))
    ]


def _draw_item(item: dict[str, Any]) -> dict[str, Any]:
    job: SampleJob = pickle.loads(item["job"])  # noqa: S301 - made by this process, a moment ago
    return {"place": item["place"], "pixels": draw(item["package"], job).tobytes()}


def draw(package: str, job: SampleJob) -> NDArray[Any]:
    """Draws a job in this process, with one thread.

    Raises:
        NonFinite: the model gave no finite picture.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _draw(_load(package), job)
    finally:
        torch.set_num_threads(threads)


def _draw(model: ModelPackage, job: SampleJob) -> NDArray[Any]:
    import torch

    prompts = job.prompts
    condition = model.condition(
        len(prompts) if job.guidance.kinds == ("none",) or job.by_label else prompts.texts,
        job.guidance,
        labels=prompts.labels if job.by_label else None,
    )
    plan = model.plan(job.sampler, job.num_steps, job.eta, job.spacing)
    x = model.sample(condition, seeds=prompts.seeds, plan=plan)
    bad = (~torch.isfinite(x.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise NonFinite(f"the model draws no finite picture for {prompts.texts[bad[0]]!r}: train it longer", tuple(bad))
    drawn: NDArray[Any] = model.drawn(x).numpy()
    return drawn


@lru_cache(maxsize=1)
def _load(package: str) -> ModelPackage:
    import torch

    from workflows.model.model import ModelPackage

    return ModelPackage.load(Path(package), "cuda" if torch.cuda.is_available() else "cpu")


def _resources() -> dict[str, Any]:
    """A task takes one CPU, and a GPU where the cluster has any."""
    return {"num_cpus": 1, "num_gpus": int(ray.cluster_resources().get("GPU", 0) >= 1)}
