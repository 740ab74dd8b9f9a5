"""Logs a model package as an MLflow `pyfunc` model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

from workflows.package.files import PIPELINE, PackageCard
from workflows.package.reference import PACKAGE
from workflows.tracking.run import TrackedRun

_ROOT: Final = Path(__file__).parents[2]
# What the model's code imports; an imported checkpoint needs the second row too.
_LIBRARIES: Final = (
    "mlflow",
    "torch",
    "torchvision",
    "open_clip_torch",
    "numpy",
    "pandas",
    "pillow",
    "safetensors",
    "jaxtyping",
)
_PARAM_TYPES: Final = {str: "string", float: "double", int: "long", bool: "boolean", list: "double"}
_INTEROP: Final = ("diffusers", "transformers")


def log_package(run: TrackedRun, package: Path, card: PackageCard) -> tuple[str, str | None]:
    """Logs a package as a `pyfunc` model made from code: no pickle, and no run of the model.

    MLflow runs a model on its input example, which may take minutes, so there is none: the signature says what goes in.

    Returns:
        The model's URI and its id.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from workflows.release.pyfunc import default_params

    inputs = [ColSpec("string", "prompt")]
    inputs += [ColSpec("string", name, required=False) for name in ("negative_prompt", "label")]
    params = [
        ParamSpec(name, _PARAM_TYPES[type(value)], value, shape=(-1,) if isinstance(value, list) else None)
        for name, value in default_params(card).items()
    ]
    outputs = Schema(
        [
            *(ColSpec(kind, name) for name, kind in card.rows.outputs.items()),
            ColSpec("long", "seed"),
            ColSpec("long", "tokens_cut"),
        ]
    )
    signature = ModelSignature(Schema(inputs), outputs, ParamSchema(params))
    with mlflow.start_run(run_id=run.run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={PACKAGE: str(package)},
            code_paths=[str(_ROOT / "diffusion_core"), str(_ROOT / "workflows")],
            signature=signature,
            pip_requirements=_requirements((package / PIPELINE).is_dir()),
        )
    # Leaving `start_run` closed the run, which still has a version to get.
    run.client.update_run(run.run_id, status="RUNNING")
    return str(logged.model_uri), logged.model_id


def _requirements(imported: bool) -> list[str]:
    """The libraries at the versions that are installed."""
    from importlib.metadata import version

    names = _LIBRARIES + (_INTEROP if imported else ())
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
