"""What the pass over Ray Data costs beside a bare open_clip loop: `python tests/bench/bench_embed.py [PART ...]`.

    small, vit   captions, each distinct one five times, 50 to a picture, through the towers of `--config digits` or the
                 text tower of ViT-B-32, with random weights: the embed stage with two actors of one thread (Ray is up,
                 the pictures' shards are there, no caption is), a script of a loop over the distinct captions with two
                 threads, and one over all of them. Scripts import and load the towers, as the actors do. Then the stage
                 again on unchanged input.
    images       50,000 and 200,000 different pictures of 32x32 through import and embedding: the peak of the memory of
                 all processes (proportional set size, ten times a second), and rows per second.

Each part writes its section of tests/bench/results/embed.md. All three take eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
from peak_memory import PeakMemory
from PIL import Image

from workflows.config.load import load_config
from workflows.config.schema import ClipConfig, RunConfig
from workflows.data.dataset import SCHEMA, DataInfo, Dataset
from workflows.data.stage import build_data
from workflows.embed.images import ImageShardWriter
from workflows.embed.plan import plan_shards
from workflows.embed.stage import embed
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.runtime.session import set_environment, start_ray, stop_ray
from workflows.storage.shards import write_shard
from workflows.storage.shelf import Shelf
from workflows.towers.clip_files import save_clip
from workflows.towers.clip_model import build_model, model_config
from workflows.towers.identity import ClipIdentity

RESULTS = Path(__file__).parent / "results/embed.md"
BATCH, SHARE, PER_PICTURE, WORKERS = 256, 5, 50, 2
SHARDS, SKIPPED = 20, 5
HEAD = """# Embedding

`python tests/bench/bench_embed.py`: 2 cores, no GPU. Ratios are of medians taken in turns within one run.
"""
LOOP = """
import sys, time, torch
from pathlib import Path
from workflows.towers.clip import open_model
folder, captions, batch, threads = sys.argv[1], Path(sys.argv[2]).read_text().splitlines(), *map(int, sys.argv[3:])
torch.set_num_threads(threads)
model, tokenizer = open_model(f"local-dir:{folder}")
with torch.no_grad():
    model.encode_text(tokenizer(captions[:batch]))
    started = time.perf_counter()
    for start in range(0, len(captions), batch):
        model.encode_text(tokenizer(captions[start : start + batch]), normalize=True)
print(time.perf_counter() - started)
"""


def sentences(distinct: int) -> list[str]:
    """Different sentences of ten words."""
    words = [
        f"{a}{b}" for a in ("red", "big", "old", "far", "dim") for b in ("house", "river", "bird", "tree", "stone")
    ]
    rng = np.random.default_rng(0)
    return [f"{' '.join(rng.choice(words, 9))} {number}" for number in range(distinct)]


def pictures(count: int, size: int) -> Iterator[bytes]:
    """Different smooth pictures as PNG."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    base = np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90, np.uint8)])
    for number in range(count):
        pixels = base.transpose(1, 2, 0).copy()
        pixels[0, 0], pixels[-1, -1] = divmod(number, 256)[0] % 256, number % 256
        pixels[size // 2, size // 2] = number // 65536
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


def towers(folder: Path, part: str) -> Path:
    """Random weights: the small CLIP that a job trains, or ViT-B-32."""
    folder.mkdir(parents=True)
    if part == "vit":
        model = open_clip.create_model("ViT-B-32", pretrained=None, output_dict=True)
        tokenizer, config = open_clip.get_tokenizer("ViT-B-32"), open_clip.get_model_config("ViT-B-32")
    else:
        model, tokenizer = build_model(ClipConfig(), 8)
        config = model_config(ClipConfig(), 8)
    save_clip(folder, model, tokenizer, name=part, source="train", model_cfg=config)
    return folder


def captioned(folder: Path, captions: list[str]) -> Path:
    """A data artifact of gray 8x8 pictures with `PER_PICTURE` captions each."""
    folder.mkdir(parents=True)
    groups = [captions[start : start + PER_PICTURE] for start in range(0, len(captions), PER_PICTURE)]
    image = next(pictures(1, 8))
    counts, parts = {}, {}
    for name, rows in (("train", groups[:-1]), ("held_out", groups[-1:])):
        first = 0 if name == "train" else len(groups)
        columns = {
            "sample_id": range(first, first + len(rows)), "image": [image] * len(rows), "captions": rows,
            "label": [-1] * len(rows), "attributes": [[]] * len(rows), "unseen": [False] * len(rows),
        }  # fmt: skip
        parts[name] = (write_shard(folder, f"{name}/part-000000.parquet", pa.Table.from_pydict(columns, SCHEMA), name),)
        counts[f"num_{name}"] = len(rows)
    DataInfo(
        "bench",
        (3, 8, 8),
        (),
        {},
        **counts,
        data_hash=folder.name,
        candidate_captions=(),
        unseen_combinations=(),
        parts=parts,
    ).save(folder)
    return folder


def run_embed(config: RunConfig, data: Path, clip: Path, folder: Path) -> dict[str, object]:
    """The embed stage, outside a job."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {"data": Artifact("data", "0" * 64, data), "clip": Artifact("clip", "1" * 64, clip)}
    return embed(config, inputs, folder, Progress.silent())


def write_images(config: RunConfig, data: Path, clip: Path, folder: Path) -> None:
    """The pictures' shards of a cache, which a loop over captions has no part in."""
    dataset, identity = Dataset.open(data), ClipIdentity.load(clip)
    plan = plan_shards(dataset, identity, config.embed)
    writer = ImageShardWriter(dataset, Shelf(folder), dataset.info.rows)
    for item in plan.images:
        writer(item)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def captions_part(part: str, count: int, repeats: int, work: Path) -> list[str]:
    distinct = sentences(count // SHARE)
    every = [distinct[number % len(distinct)] for number in range(count)]
    clip, data = towers(work / "clip", part), captioned(work / "data", every)
    rows = -(-len(distinct) // SHARDS)

    def configure(name: str, rows: int = rows) -> RunConfig:
        settings = [f"storage.root={work / name}-root", f"embed.workers={WORKERS}", f"embed.rows_per_shard={rows}"]
        return load_config("digits", settings)

    def stage(name: str) -> int:
        return int(str(run_embed(configure(name), data, clip, work / name)["encoded_captions"]))

    def loop(texts: list[str]) -> float:
        (work / "captions.txt").write_text("\n".join(texts))
        arguments = [str(clip), str(work / "captions.txt"), str(BATCH), str(WORKERS)]
        command, root = [sys.executable, "-c", LOOP, *arguments], Path(__file__).parents[2]
        return float(subprocess.run(command, check=True, cwd=root, capture_output=True, text=True).stdout)

    run_embed(configure("warm", rows=1), captioned(work / "few", distinct[:WORKERS]), clip, work / "warm")
    whole: dict[str, list[float]] = {"pass": [], "distinct": [], "all": []}
    encoding: dict[str, list[float]] = {name: [] for name in whole}
    for repeat in range(repeats):
        write_images(configure(f"run{repeat}"), data, clip, work / f"run{repeat}")
        for name, run in (
            ("pass", lambda repeat=repeat: stage(f"run{repeat}")),
            ("distinct", lambda: loop(distinct)),
            ("all", lambda: loop(every)),
        ):
            seconds, found = timed(run)
            whole[name].append(seconds)
            encoding[name].append(found if name != "pass" else steady_seconds(work / f"run{repeat}/captions"))
        times = ", ".join(f"{k} {v[-1]:.1f} s (encoding {encoding[k][-1]:.1f} s)" for k, v in whole.items())
        sys.stderr.write(f"{part}: {times}\n")
    again, encoded = timed(lambda: stage("run0"))
    whole_s, encoding_s = ({k: statistics.median(v) for k, v in times.items()} for times in (whole, encoding))
    return [
        f"{count:,} captions, {len(distinct):,} of them distinct; median of {repeats}.",
        "",
        "Whole: with the start of script or actors, and the loading of the towers (of the pass, in two processes on",
        "the two cores), which is the same for any number of captions. Encoding: after that. Of the pass: from the",
        f"writing of shard {SKIPPED} of {SHARDS} to that of the last, scaled to all.",
        "",
        "| | whole, s | encoding, s | the pass is, whole | the pass is, encoding | wanted |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| pass | {whole_s['pass']:.2f} | {encoding_s['pass']:.2f} | | | |",
        *(
            f"| loop over {name} | {whole_s[name]:.2f} | {encoding_s[name]:.2f} "
            f"| {whole_s[name] / whole_s['pass']:.2f}x | {encoding_s[name] / encoding_s['pass']:.2f}x | >= {wanted}x |"
            for name, wanted in (("distinct", 0.85), ("all", 4))
        ),
        f"| pass again, {encoded} encoded | {again:.2f} | | {again / whole_s['pass']:.1%} of the first | | <= 5% |",
    ]


def steady_seconds(folder: Path) -> float:
    """Seconds for all shards at the pace after both actors have begun, from when the shards were written."""
    times = sorted(path.stat().st_mtime for path in folder.glob("*.parquet"))
    return (times[-1] - times[SKIPPED - 1]) * len(times) / (len(times) - SKIPPED)


def images_part(counts: list[int], work: Path) -> list[str]:
    clip = towers(work / "clip", "small")
    found: dict[str, list[tuple[float, float]]] = {"import": [], "embed": []}
    for count in [2000, *counts]:
        source, data = work / f"source-{count}", work / f"data-{count}"
        source.mkdir()
        data.mkdir()
        captions = sentences(count // 10)
        with pq.ParquetWriter(
            source / "part.parquet", pa.schema({"image": pa.binary(), "caption": pa.string()})
        ) as out:
            images = pictures(count, 32)
            for start in range(0, count, 1000):
                texts = [captions[number % len(captions)] for number in range(start, start + 1000)]
                out.write_table(pa.table({"image": [next(images) for _ in texts], "caption": texts}, out.schema))
        settings = [
            "data.source=parquet", f"data.path={source}", "data.image_size=32",
            f"storage.root={work}/root-{count}", f"embed.workers={WORKERS}",
        ]  # fmt: skip
        config = load_config("digits", settings)
        for name, run in (
            ("import", lambda: build_data(config, {}, data, Progress.silent())),  # noqa: B023
            ("embed", lambda: run_embed(config, data, clip, work / f"cache-{count}")),  # noqa: B023
        ):
            with PeakMemory() as memory:
                seconds, _ = timed(run)
            found[name].append((memory.mib, count / seconds))
            sys.stderr.write(f"{count} {name}: {seconds:.1f} s, {memory.mib:.0f} MiB\n")
    lines = [
        "A tenth as many distinct captions. After a first run with 2,000 pictures.",
        "",
        "| | " + " | ".join(f"{count:,}" for count in counts) + " | ratio | wanted |",
        "| --- | " + " | ".join("---:" for _ in counts) + " | ---: | ---: |",
    ]
    for name, (_, *rows) in found.items():
        memory, speed = zip(*rows, strict=True)
        lines.append(f"| {name}, peak memory, MiB | " + " | ".join(f"{value:.0f}" for value in memory)
                     + f" | {memory[-1] / memory[0]:.2f}x | <= 1.3x |")  # fmt: skip
        lines.append(f"| {name}, pictures/s | " + " | ".join(f"{value:.0f}" for value in speed)
                     + f" | {speed[-1] / speed[0]:.2f}x | >= 0.9x |")  # fmt: skip
    return lines


def write(title: str, lines: list[str]) -> None:
    """Puts a section in place of the one of that title."""
    sections = RESULTS.read_text().split("\n## ")[1:] if RESULTS.is_file() else []
    kept = {section.splitlines()[0]: section.rstrip("\n") for section in sections}
    kept[title] = "\n".join([title, "", *lines])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(HEAD + "".join(f"\n## {kept[name]}\n" for name in TITLES.values() if name in kept))
    sys.stdout.write("\n".join([title, *lines]) + "\n")


TITLES = {"small": "Captions, small CLIP", "images": "Pictures of 32x32", "vit": "Captions, ViT-B-32"}
COUNTS, REPEATS = {"small": 100_000, "vit": 1500}, {"small": 2, "vit": 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", help="small, images, vit; default: all")
    parser.add_argument("--captions", type=int, help=f"default: {COUNTS}")
    parser.add_argument("--repeats", type=int, help=f"default: {REPEATS}")
    parser.add_argument("--images", type=int, nargs=2, default=[50_000, 200_000])
    options = parser.parse_args()
    set_environment()
    start_ray(num_cpus=WORKERS)
    try:
        for part in options.parts or TITLES:
            with tempfile.TemporaryDirectory() as folder:
                if part == "images":
                    lines = images_part(options.images, Path(folder))
                else:
                    count, repeats = options.captions or COUNTS[part], options.repeats or REPEATS[part]
                    lines = captions_part(part, count, repeats, Path(folder))
            write(TITLES[part], lines)
    finally:
        stop_ray()


if __name__ == "__main__":
    main()
