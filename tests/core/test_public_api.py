"""The public names of the core are a contract: they come and go on purpose only."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import diffusion_core
from diffusion_core import spacing
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule

GOLDEN = (Path(__file__).parent / "data" / "public_names.txt").read_text().split()
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(diffusion_core.__path__, "diffusion_core.")
    if not module.name.endswith("__main__")
)


def test_public_names_are_the_golden_list():
    """Add a name to tests/core/data/public_names.txt when you mean it to be public."""
    assert sorted(diffusion_core.__all__) == GOLDEN == sorted(set(GOLDEN))


def test_type_checkers_see_the_same_names():
    """What the stub imports, line by line, is what is loaded when asked for."""
    seen = {}
    for line in ast.parse(Path(diffusion_core.__file__).with_suffix(".pyi").read_text()).body:
        assert isinstance(line, ast.ImportFrom) and len(line.names) == 1 and line.names[0].asname == line.names[0].name
        seen[line.names[0].name] = (line.module or "").removeprefix("diffusion_core.")
    assert seen == diffusion_core._HOMES


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'expand'"):
        diffusion_core.expand  # noqa: B018


def test_the_errors_alone_do_not_load_pytorch():
    program = "import sys, diffusion_core.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_public_name_is_there_and_documented():
    for name in diffusion_core.__all__:
        value = getattr(diffusion_core, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
            assert value.__module__.startswith("diffusion_core."), name


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "scaled_linear", "sigmoid", "from_betas", "with_zero_terminal_snr"]
)
def test_schedules_that_the_design_promises(name):
    assert callable(getattr(NoiseSchedule, name))


@pytest.mark.parametrize("name", ["trailing", "leading", "linspace", "quadratic"])
def test_spacings_that_the_design_promises(name):
    assert callable(getattr(spacing, name))


@pytest.mark.parametrize("name", ["from_eps", "from_x0", "from_v"])
def test_predictions_that_the_design_promises(name):
    assert callable(getattr(Prediction, name))


@pytest.mark.parametrize(
    "name",
    [
        "NoiseSchedule", "NetworkDenoiser", "ClassifierFreeGuidance", "GradientGuidance", "Prediction", "SamplerPlan",
        "StepEngine", "ModelBundle", "Condition", "ddpm", "ddim", "dpm_solver", "step", "sample", "invert",
        "elbo_terms", "bits_per_dim", "trailing",
    ],
)  # fmt: skip
def test_names_that_the_design_promises(name):
    assert name in diffusion_core.__all__


@pytest.mark.parametrize("name", MODULES)
def test_every_module_opens_with_what_it_is_for(name):
    module = importlib.import_module(name)
    assert module.__doc__ or name.endswith("networks"), name


def test_importing_the_core_has_no_effect():
    """Not on torch's state, nor on files, threads or the terminal; and nothing of the job comes along."""
    program = """
import sys, threading, torch
before = (torch.get_default_dtype(), torch.get_num_threads(), torch.random.initial_seed(), threading.active_count())
import diffusion_core, pkgutil, importlib
for module in pkgutil.walk_packages(diffusion_core.__path__, "diffusion_core."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = (torch.get_default_dtype(), torch.get_num_threads(), torch.random.initial_seed(), threading.active_count())
assert before == after, (before, after)
heavy = {"ray", "mlflow", "fastapi", "starlette", "open_clip", "torchvision", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_annotations_are_checked_in_these_tests():
    """Negative control of the import hook: without it, a wrong type goes through."""
    x = torch.zeros(2, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        NoiseSchedule.linear().q_sample(x, torch.tensor([1.0, 2.0]), x)
    with pytest.raises(jaxtyping.TypeCheckError):
        NoiseSchedule.linear().q_sample(x, torch.tensor([1, 2, 3]), x)
