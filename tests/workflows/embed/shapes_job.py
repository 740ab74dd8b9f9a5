"""The embed stage on shapes, long enough to be killed on the way."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.runtime.artifact import Artifact

ROOT = Path(__file__).parents[3]
# Five pictures of each combination, in shards that are many and small: what is left when it is killed takes seconds.
SETTINGS = ("data.num_samples=1200", "embed.rows_per_shard=30")
PROGRAM = """
import sys
from pathlib import Path
import ray
from workflows.runtime.artifact import Artifact
from workflows.config.load import load_config
from workflows.embed.stage import embed
from workflows.runtime.progress import Progress
address, data, clip, folder, *settings = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
inputs = {"data": Artifact("data", "0" * 64, Path(data)), "clip": Artifact("clip", "1" * 64, Path(clip))}
embed(load_config("shapes", settings), inputs, Path(folder), Progress.silent())
"""


@dataclass(frozen=True)
class ShapesJob:
    """Data and towers of the job."""

    inputs: dict[str, Artifact]

    def config(self, *more: str) -> RunConfig:
        return load_config("shapes", [*SETTINGS, *more])

    @contextlib.contextmanager
    def started(self, folder: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """The stage in a process of its own on the session's Ray; other runs' captions are known beside the folder."""
        folder.mkdir()
        settings = [*SETTINGS, f"storage.root={folder}-root", *more]
        places = [str(self.inputs[name].folder) for name in ("data", "clip")]
        arguments = [ray.get_runtime_context().gcs_address, *places, str(folder), *settings]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, env=environment) as process:
            yield process
