"""Killed workers and drivers, lost and preempted nodes: the end is bit for bit that of a run left alone."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from workflows.embed.cache import EmbeddingCache
from workflows.train.losslog import read_losses

PROGRAMS = Path(__file__).parents[1] / "programs"
ROOT = Path(__file__).parents[3]
STEPS = 300
NODE_STEPS = 500  # the notice must come before the end
KILLS = ("worker", "driver", "worker", "driver", "worker")


@contextlib.contextmanager
def training(
    cache: EmbeddingCache, folder: Path, home: Path, steps: int = STEPS, how: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`train_job.py`, or `cluster_job.py` if it says how; ended with its Ray at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    with (folder / "output.log").open("a") as log:
        program = PROGRAMS / ("cluster_job.py" if how else "train_job.py")
        command = [sys.executable, str(program), str(cache.folder), str(folder), str(steps), *([how] if how else [])]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        descendants: list[psutil.Process] = []
        try:
            yield process
        finally:
            if process.poll() is None:
                descendants = psutil.Process(process.pid).children(recursive=True)
                process.kill()
            process.wait()
            psutil.wait_procs(descendants, timeout=20)


def kill(process: subprocess.Popen[bytes], who: str) -> None:
    """Of the training's workers the first, or the driver; a dead driver's Ray is gone when it returns."""
    if who == "driver":
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, left = psutil.wait_procs(descendants, timeout=30)
        # Ray's two agents of a node may outlive a raylet that went down with its driver; they do nothing by themselves.
        agents = [one for one in left if "Agent" in " ".join(one.cmdline())]
        assert left == agents
        for one in agents:
            one.kill()
        return
    training_worker(process).kill()


def training_worker(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The first, as soon as it runs: a log that is ahead of the last checkpoint tells of workers that are gone."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "TrainWorker" in " ".join(one.cmdline()):
                    return one
        time.sleep(0.05)
    raise AssertionError("no training worker runs")


def wait_until(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    """Training has logged this step."""
    deadline = time.monotonic() + 180
    while not (rows := read_losses(folder / "losses.csv")) or rows[-1]["step"] < step:
        assert process.poll() is None, (folder / "output.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_was_killed_five_times_ends_like_one_that_was_not(cache: EmbeddingCache, tmp_path: Path) -> None:
    with training(cache, tmp_path / "whole", tmp_path) as process:
        assert process.wait() == 0, (tmp_path / "whole" / "output.log").read_text()[-3000:]
    folder, draws = tmp_path / "killed", random.Random(0)
    moments = sorted(draws.sample(range(20, STEPS - 30), len(KILLS)))
    done: list[str] = []
    while (folder / "weights.safetensors").exists() is False:
        with training(cache, folder, tmp_path) as process:
            while len(done) < len(KILLS) and process.poll() is None:
                wait_until(process, folder, moments[len(done)])
                kill(process, KILLS[len(done)])
                done.append(KILLS[len(done)])
                time.sleep(1.0)
            assert process.wait() == (-9 if done[-1] == "driver" and len(done) < len(KILLS) else 0)
    assert tuple(done) == KILLS
    assert_same(tmp_path / "whole", folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_and_a_preempted_one_do_not_change_the_end(cache: EmbeddingCache, tmp_path: Path) -> None:
    """The preempted run writes no checkpoint of its own accord: that of the notice is the only one before the end."""
    for how in ("calm", "lost", "preempted"):
        with training(cache, tmp_path / how, tmp_path, NODE_STEPS, how) as process:
            assert process.wait() == 0, (tmp_path / how / "output.log").read_text()[-3000:]
    for how in ("lost", "preempted"):
        assert float((tmp_path / how / "lost").read_text()) < NODE_STEPS
        assert_same(tmp_path / "calm", tmp_path / how)
    steps = sorted(int(path.name[-8:]) for path in (tmp_path / "preempted").glob("checkpoints/*/step-*"))
    assert len(steps) == 2
    assert steps[0] < NODE_STEPS == steps[1]


def assert_same(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, by way of the same losses."""
    first, second = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    rows = [[(row["step"], row["loss"]) for row in read_losses(folder / "losses.csv")] for folder in (one, other)]
    assert rows[0] == rows[1]
