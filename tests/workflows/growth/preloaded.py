"""Checks grown copies of the code, each in a process of its own; the libraries are loaded once for all of them.

Usage: python -m tests.workflows.growth.preloaded PACKAGE FOLDER GROWTH=COPY ...

Each process is a fork of this one, in which nothing of `workflows` or `diffusion_core` is loaded. What the check of a
copy prints is in FOLDER/COPY.txt afterwards. Its last line is `works`, or that of a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

LIBRARIES = (
    "matplotlib.pyplot",
    "mlflow.pyfunc",
    "open_clip",
    "pandas",
    "pyarrow.parquet",
    "ray.data",
    "ray.serve",
    "sklearn",
    "torch",
    "torchmetrics",
    "torchvision",
)


def check(growth: str, copy: Path, package: Path, scratch: Path) -> None:
    """Runs the check of a growth in a copy."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    import workflows

    assert Path(workflows.__file__).is_relative_to(copy)
    scratch.mkdir()
    importlib.import_module(f"tests.workflows.growth.{growth}").check(package, scratch)
    print("works")


def check_apart(growth: str, copy: Path, package: Path, folder: Path) -> None:
    """The same in a fork, and waits for its end."""
    if (process := os.fork()) != 0:
        os.waitpid(process, 0)
        return
    with (folder / f"{copy.name}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        check(growth, copy, package, folder / copy.name)
    except BaseException:  # noqa: BLE001 - the test reads what went wrong
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    for argument in sys.argv[3:]:
        growth, _, place = argument.partition("=")
        check_apart(growth, Path(place), Path(sys.argv[1]), Path(sys.argv[2]))
