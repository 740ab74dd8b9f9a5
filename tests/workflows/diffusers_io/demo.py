"""One pass with a tiny Stable Diffusion: import, embed, LoRA, evaluate, promote, serve, export.

    python -m tests.workflows.diffusers_io.demo [FOLDER] [digits | shapes]

The pipeline draws eight of the ten digits (or shapes in four of six colours); the fine-tune sees all. Every step is a
command that a user gives; a second call goes on where the first one stopped. Prints what the judge says of base and
tuned, and draws `demo.png`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from tests.workflows.diffusers_io.trained import SUBJECTS, Subject, make_base
from workflows.config.load import load_config
from workflows.data.dataset import Dataset
from workflows.evaluate.measure import Drawn
from workflows.evaluate.metrics.judge import Judge, train_judge
from workflows.evaluate.pictures import Column, draw_grid
from workflows.evaluate.prompts import Prompts, ask
from workflows.evaluate.sampling import SampleJob, draw
from workflows.job.pipeline import plan_job
from workflows.job.stages import STAGES
from workflows.options.guidance import Guidance
from workflows.package.files import PackageCard
from workflows.package.source import find_model

NAME: Final = "demo"
_STEPS: Final = 10
_SCALE: Final = 3.0
_ASKED: Final = 240
_SHOWN: Final = 6


def settings(root: Path, subject: Subject) -> dict[str, Any]:
    """The job: a LoRA of the imported pipeline, on all pictures."""
    length = {"batch_size": 32, "learning_rate": 0.003, "checkpoint_every": 200, "ema_decay": 0.99}
    return {
        "name": NAME,
        "data": {"source": subject.source, "num_samples": subject.samples, "unseen_combinations": 0.0},
        "clip": {"steps": 100},
        "denoiser": {"base": f"{NAME}/1", "lora": {"rank": 8, "alpha": 8}, "train": {"steps": 400, **length}},
        "classifier": {"network": {"width": 64, "depth": 2}, "train": {"steps": 100, **length}},
        "evaluate": {
            "num_prompts": 96,
            "num_prompts_per_scale": 48,
            "num_prompts_per_gradient": 24,
            "num_steps": _STEPS,
            "guidance_scale": _SCALE,
            "scales": [1.0, _SCALE],
        },
        "register": {"model_name": NAME, "gate": {"num_prompts": 120}},
        "serve": {"num_steps": _STEPS, "max_rows": 4, "port": 8127},
        "storage": {"root": str(root / "runs"), "track_training": False},
    }


def main(root: Path, subject: Subject) -> None:
    """The whole pass."""
    root.mkdir(parents=True, exist_ok=True)
    base, file = make_base(root / "base", subject), root / "demo.yaml"
    file.write_text(yaml.safe_dump(settings(root, subject)))
    if not (root / "runs" / "imports").is_dir():
        raverse("import", str(base), "--name", NAME, "--config", str(file))
    raverse("run", "--config", str(file))
    for kind, target in (("diffusers", root / "exported"), ("lora", root / "lora")):
        if not target.exists():
            raverse("export", f"{NAME}@champion", str(target), "--format", kind, "--config", str(file))
    report(root, file, subject)


def raverse(*arguments: str) -> None:
    """A command, as a user gives it."""
    print("$ raverse", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "workflows.cli", *arguments], check=True)


def report(root: Path, file: Path, subject: Subject) -> None:
    """Says how often base and tuned draw what is asked, and shows both, and what diffusers draws of the export."""
    config = load_config(str(file), [])
    artifacts = {planned.stage.name: planned.artifact for planned in plan_job(config, STAGES)}
    assert artifacts["data"] is not None
    dataset = Dataset.open(artifacts["data"].folder)
    judge, prompts = train_judge(dataset, 0), unseen(dataset, subject)
    base, tuned = (find_model(config, reference).folder for reference in (f"{NAME}/1", f"{NAME}@champion"))
    assert PackageCard.load(base).parts["denoiser"] == PackageCard.load(tuned).parts["denoiser"], "the base is touched"
    job = SampleJob(prompts, Guidance.of("classifier_free", guidance_scale=_SCALE), num_steps=_STEPS)
    before, after = (judged(job, draw(str(folder), job), judge) for folder in (base, tuned))
    shown = prompts.first(_SHOWN)
    small = SampleJob(shown, Guidance.of("classifier_free", guidance_scale=_SCALE), num_steps=_STEPS)
    outside = judged(small, of_diffusers(root / "exported", tuned, shown), judge)
    same = int(np.abs(outside.images.astype(int) - after.images[:_SHOWN].astype(int)).max())
    figures = {
        "unseen_by_the_base": {"base": accuracies(before, subject), "tuned": accuracies(after, subject)},
        "all": {name: artifacts[name].metrics for name in ("denoiser", "evaluate")},  # type: ignore[union-attr]
        "largest_difference_from_diffusers": same,
    }
    (root / "demo.json").write_text(json.dumps(figures, indent=2))
    columns = [("base", before), ("tuned", after), ("exported,\nby diffusers", outside)]
    pictures = [Column(title, found.images[:_SHOWN], found.right[:_SHOWN]) for title, found in columns]
    draw_grid(root / "demo.png", shown.texts, pictures, "what the base never saw; red frame: not as asked")
    print(json.dumps(figures["unseen_by_the_base"], indent=2))
    print(f"largest difference from diffusers: {same} of 255; {root / 'demo.png'}")


def unseen(dataset: Dataset, subject: Subject) -> Prompts:
    """Prompts for what the base has never seen."""
    every = ask(dataset, _ASKED, 1)
    wanted = [dataset.info.attributes[subject.attribute].index(value) for value in subject.unseen]
    return every.rows(np.flatnonzero(np.isin(every.targets[:, subject.place], wanted)))


def judged(job: SampleJob, images: NDArray[np.uint8], judge: Judge) -> Drawn:
    """Pictures, and what the judge sees in them."""
    return Drawn(job, images, judge(images))


def accuracies(found: Drawn, subject: Subject) -> dict[str, float]:
    """Share of pictures that are right in the attribute, and in every respect."""
    same = found.judged == found.job.prompts.targets
    return {subject.attribute: float(same[:, subject.place].mean()), "all": found.accuracy}


def of_diffusers(folder: Path, package: Path, prompts: Prompts) -> NDArray[np.uint8]:
    """What the exported pipeline draws of the same noise."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from diffusion_core import noise
    from workflows.model.model import ModelPackage

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    start = noise.normal(list(prompts.seeds), noise.INITIAL, 0, ModelPackage.load(package).shape)
    with torch.no_grad():
        found = pipe(
            list(prompts.texts), num_inference_steps=_STEPS, guidance_scale=_SCALE, latents=start, output_type="np"
        )
    pixels: NDArray[np.uint8] = np.round(np.asarray(found.images) * 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return pixels


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(Path(given.get(0, "runs/interop-demo")).absolute(), SUBJECTS[given.get(1, "digits")])
