"""What the pass over Ray Data costs beside a bare loop: `python tests/bench/bench_embed.py [--captions 20000]`.

`--captions` captions of a fifth as many distinct ones, as samples of one 8x8 picture each, through a small CLIP with
random weights on one core, in turns within one run: the pass (Ray is up, caches start empty), a bare open_clip loop
over the distinct captions, and a loop over all of them. Then the pass again on unchanged input, and with one in a
hundred distinct captions new. Medians; the ratios are what counts. It writes tests/bench/results/bench_embed.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from workflows.artifact import Artifact
from workflows.config import ClipConfig
from workflows.config_file import load_config
from workflows.data.dataset import DataInfo, Split, write_split
from workflows.embed.clip import load_clip
from workflows.embed.clip_files import save_clip
from workflows.embed.clip_training import build_model, model_config
from workflows.embed.stage import embed
from workflows.progress import Progress
from workflows.session import set_environment, start_ray, stop_ray

CLIP = ClipConfig(context_length=32, text_width=128, text_layers=4, vision_width=32, vision_layers=1)
BATCH, SHARE = 256, 5


def write_data(folder: Path, captions: list[str]) -> Path:
    """A data artifact with one picture for each caption."""
    folder.mkdir(parents=True)
    parts = {"train": captions[:-8], "held_out": captions[-8:]}
    for name, texts in parts.items():
        count = len(texts)
        ids = np.arange(count, dtype=np.int64) + (0 if name == "train" else len(captions))
        images = np.zeros((count, 1, 8, 8), np.uint8)
        captions_of = tuple((text,) for text in texts)
        none = np.full(count, -1)
        write_split(
            Split(ids, images, captions_of, none, ((),) * count, np.zeros(count, bool)), folder / f"{name}.parquet"
        )
    counts = {f"num_{name}": len(texts) for name, texts in parts.items()}
    info = DataInfo(
        "bench", (1, 8, 8), (), {}, **counts, data_hash=folder.name, candidate_captions=(), unseen_combinations=()
    )
    info.save(folder)
    return folder


def captions(count: int, distinct: int, first: int = 0) -> list[str]:
    """Sentences of ten words; each of `distinct` ones equally often."""
    words = [
        f"{a}{b}" for a in ("red", "big", "old", "far", "dim") for b in ("house", "river", "bird", "tree", "stone")
    ]
    rng = np.random.default_rng(0)
    every = [f"{' '.join(rng.choice(words, 9))} {first + number}" for number in range(distinct)]
    return [every[number % distinct] for number in range(count)]


def timed(run) -> tuple[float, object]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    set_environment()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp())
    towers = work / "clip"
    towers.mkdir()
    model, tokenizer = build_model(CLIP, 8)
    save_clip(towers, model, tokenizer, name="bench", source="train", model_cfg=model_config(CLIP, 8))
    text = load_clip(towers).text
    every = captions(options.captions, options.captions // SHARE)
    distinct = sorted(set(every))
    data = write_data(work / "data", every)
    more = write_data(work / "more", every + [f"{caption} more" for caption in distinct[: len(distinct) // 100]])

    def loop(texts: list[str]) -> None:
        for start in range(0, len(texts), BATCH):
            text.encode(texts[start : start + BATCH])

    def run(name: str, data_folder: Path) -> int:
        config = load_config("digits", [f"storage.root={work / name}-root"])
        inputs = {"data": Artifact("data", "0" * 64, data_folder), "clip": Artifact("clip", "1" * 64, towers)}
        (work / name).mkdir(exist_ok=True)
        return int(embed(config, inputs, work / name, Progress.silent())["encoded_captions"])

    start_ray(num_cpus=2)
    try:
        run("warm", data)
        seconds: dict[str, list[float]] = {"pass": [], "bare loop, distinct": [], "bare loop, all": []}
        for repeat in range(options.repeats):
            took, encoded = timed(lambda repeat=repeat: run(f"run{repeat}", data))
            assert encoded == len(distinct)
            seconds["pass"].append(took)
            seconds["bare loop, distinct"].append(timed(lambda: loop(distinct))[0])
            seconds["bare loop, all"].append(timed(lambda: loop(every))[0])
        again, encoded_again = timed(lambda: run("run0", data))
        (work / "next").mkdir()
        (work / "next-root").symlink_to(work / "run0-root")
        grown, encoded_grown = timed(lambda: run("next", more))
    finally:
        stop_ray()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    lines = [
        "# bench_embed",
        "",
        (
            f"`python {' '.join(sys.argv)}`: {options.captions} captions, {len(distinct)} distinct, "
            f"median of {options.repeats}, one thread."
        ),
        "",
        "| what | seconds | ratio |",
        "| --- | ---: | --- |",
        *(f"| {name} | {value:.2f} | {value / median['pass']:.2f} x the pass |" for name, value in median.items()),
        f"| second run, unchanged ({encoded_again} encoded) | {again:.2f} | {again / median['pass']:.3f} x the pass |",
        f"| 1% new captions ({encoded_grown} encoded) | {grown:.2f} | {grown / median['pass']:.2f} x the pass |",
    ]
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "bench_embed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
