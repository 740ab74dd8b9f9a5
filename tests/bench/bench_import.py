"""Measures the driver of an import: `python tests/bench/bench_import.py [--pictures N]`.

N different pictures of 32x32 (default: 200,000), each with a caption of its own, in tar files of 1,000 (WebDataset), go
through the data stage on two cores; a quarter of them before that. Each import has a driver of its own, which has
started Ray and imported 2,000 pictures before. Another process looks four times a second at the CPU time of the driver
and of all processes below it (Ray's own, too), and at the driver's unique set size (USS).

Writes tests/bench/results/import.md. The whole takes six minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import select
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil

RESULTS = Path(__file__).parent / "results/import.md"
PER_TAR, WARM, CORES = 1000, 2000, 2
HEAD = """# Import

`python tests/bench/bench_import.py`: 2 cores, no GPU. The driver is the process that runs the job; tasks do the rest.
"""


def write_tar(path: Path, first: int) -> None:
    """Pictures whose pixels and captions follow their number."""
    from workflows.data.png import encode_png

    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    base = np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[:, None], (1, 32)), np.full((32, 32), 90, np.uint8)])
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + PER_TAR):
            base[0, 0, :3] = number % 256, number // 256 % 256, number // 65536
            caption = f"a smooth picture that is like no other, of the number {number}"
            for suffix, data in (("png", encode_png(base, compression=1)), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_tars(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    firsts = range(0, count, PER_TAR)
    paths = [folder / f"{first // PER_TAR:06d}.tar" for first in firsts]
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(write_tar, paths, firsts))
    return paths


def link(folder: Path, tars: list[Path]) -> Path:
    folder.mkdir()
    for tar in tars:
        os.link(tar, folder / tar.name)
    return folder


def drive(source: Path, warm: Path, work: Path) -> None:
    """The driver: a first small import, then the measured one."""
    from workflows.config.load import load_config
    from workflows.data.stage import build_data
    from workflows.runtime.progress import Progress
    from workflows.runtime.session import set_environment, start_ray, stop_ray

    set_environment()
    start_ray(num_cpus=CORES)
    for name, path in (("warm", warm), ("data", source)):
        (work / name).mkdir(parents=True)
        if name == "data":
            watch = [sys.executable, __file__, "--watch", str(os.getpid())]
            watcher = subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            watcher.stdout.readline()
        started = time.perf_counter()
        settings = ["data.source=webdataset", f"data.path={path}", "data.image_size=32"]
        figures = build_data(load_config("digits", settings), {}, work / name, Progress.silent())
    seconds = time.perf_counter() - started
    found = json.loads(watcher.communicate("\n")[0]) | {"seconds": seconds} | figures
    stop_ray()
    sys.stdout.write(f"{json.dumps(found)}\n")


def cpu_seconds(driver: psutil.Process) -> dict[int, float]:
    """CPU time so far of a process and all below it, but for this one."""
    found = {}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        if process.pid != os.getpid():
            found[process.pid] = times.user + times.system
    return found


def watch(pid: int) -> None:
    """Until a line comes in; says what CPU time the driver and the others took, and the driver's largest USS."""
    driver, uss = psutil.Process(pid), 0
    before = cpu_seconds(driver)
    last = dict(before)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0.25)[0]:
        last |= cpu_seconds(driver)
        uss = max(uss, driver.memory_full_info().uss)
    last |= cpu_seconds(driver)
    spent = {number: seconds - before.get(number, 0.0) for number, seconds in last.items()}
    own = spent.pop(pid)
    sys.stdout.write(json.dumps({"driver": own, "others": sum(spent.values()), "uss": uss / 2**20}))


def table(runs: list[dict[str, float]]) -> list[str]:
    rows = {
        "wall time, s": [f"{run['seconds']:.0f}" for run in runs],
        "pictures/s": [f"{(run['num_train'] + run['num_held_out']) / run['seconds']:.0f}" for run in runs],
        "CPU time of the driver, s": [f"{run['driver']:.1f}" for run in runs],
        "CPU time of all other processes, s": [f"{run['others']:.1f}" for run in runs],
        "driver's share of CPU time": [f"{run['driver'] / (run['driver'] + run['others']):.1%}" for run in runs],
        "driver's peak USS, MiB": [f"{run['uss']:.0f}" for run in runs],
    }
    grown = f"{runs[-1]['uss'] / runs[0]['uss']:.2f}x"
    wanted = {"driver's share of CPU time": "<= 5%", "driver's peak USS, MiB": f"flat; is {grown}"}
    return [f"| {name} | {' | '.join(cells)} | {wanted.get(name, '')} |" for name, cells in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--drive", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--watch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        watch(options.watch)
    elif options.drive:
        drive(*options.drive)
    else:
        measure(options.pictures)


def measure(pictures: int) -> None:
    """Imports a quarter of so many pictures, then all, and writes the table."""
    counts, load = [pictures // 4, pictures], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tars, runs = write_tars(work / "tars", pictures), []
        warm = link(work / "warm", tars[: WARM // PER_TAR])
        for count in counts:
            source = link(work / f"source-{count}", tars[: count // PER_TAR])
            command = [sys.executable, __file__, "--drive", str(source), str(warm), str(work / f"work-{count}")]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            runs.append(json.loads(output.splitlines()[-1]))
            sys.stderr.write(f"{count}: {runs[-1]}\n")
    lines = [
        f"Pictures of 32x32 in tar files of {PER_TAR:,}, each with a caption of its own. After a first import of",
        f"{WARM:,} pictures by the same driver. Before the start other work kept {load:.1f} processes busy.",
        "",
        "| | " + " | ".join(f"{count:,}" for count in counts) + " | wanted |",
        "| --- | " + " | ".join("---:" for _ in counts) + " | ---: |",
        *table(runs),
    ]
    RESULTS.write_text(HEAD + "\n" + "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
