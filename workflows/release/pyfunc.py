"""The code of a registered model: MLflow runs this file to load a package as a `pyfunc` model.

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    pictures = model.predict(pandas.DataFrame({"prompt": ["a handwritten seven"]}), params={"seed": 7})

No Ray, no raverse installation and no pickle is needed: the code lies beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor

from diffusion_core.errors import RaverseError
from workflows.errors import InvalidRequest
from workflows.model.model import ModelPackage
from workflows.options.guidance import DEFAULT_GUIDANCE, DEFAULT_SCALES, SETTINGS, Guidance
from workflows.options.samplers import DEFAULT_SAMPLER
from workflows.package.files import PackageCard

_LARGEST_SEED: Final = 2**64 - 1
BATCH: Final = 64
"""Rows that are denoised at once; a row's picture does not depend on it."""


def default_params(card: PackageCard) -> dict[str, Any]:
    """The parameters of `predict(params=...)`, with the values that they otherwise take.

    Intervals are lists of two numbers. Settings that the guidance does not read have no effect, since MLflow passes
    every parameter on.
    """
    conditional = bool(card.candidate_captions or card.class_names)
    settings = {name: setting.neutral for name, setting in SETTINGS.items()} | dict(DEFAULT_SCALES)
    settings |= {name: SETTINGS[name].checked(value) for name, value in card.defaults.guidance.items()}
    return {
        "guidance": DEFAULT_GUIDANCE.name if conditional else "none",
        **{name: SETTINGS[name].plain(value) for name, value in settings.items()},
        "sampler": DEFAULT_SAMPLER,
        "num_inference_steps": card.defaults.num_steps,
        "eta": 0.0,
        "seed": 0,
    }


@final
class PackagedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model package behind `predict`."""

    def load_context(self, context: Any) -> None:
        """Loads the package; MLflow calls it once, and by this name of the argument."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._package = ModelPackage.load(Path(context.artifacts["package"]), device)

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Draws one picture, or one vector, per row.

        Args:
            context: not used.
            model_input: a table with `prompt`, and where wanted `negative_prompt` and `label` (a class by name).
            params: see `default_params`; row i is drawn with `seed + i`.

        Returns:
            A table with `image` (PNG), `seed`, and `tokens_cut`, the tokens at the prompt's end that the model did not
            read; of a model of vectors, with a column for each number in place of `image`.

        Raises:
            MlflowException: values that do not fit together; names the field.
        """
        try:
            return self._drawn(model_input, params)
        except RaverseError as error:
            # MLflow's own servers answer this kind with status 400 and the message.
            raise MlflowException.invalid_parameter_value(_named(error)) from error

    def _drawn(self, model_input: pd.DataFrame, params: dict[str, Any] | None) -> pd.DataFrame:
        given = default_params(self._package.card) | dict(params or {})
        _check_numbers(given, len(model_input), self._package.schedule.num_levels)
        seeds = [int(given["seed"]) + row for row in range(len(model_input))]
        parts = [slice(start, start + BATCH) for start in range(0, len(seeds), BATCH)]
        drawn = torch.cat([_draw(self._package, model_input[rows], seeds[rows], given) for rows in parts])
        cut = [self._package.tokens_cut(str(prompt)) for prompt in model_input["prompt"]]
        return pd.DataFrame(self._package.rows.table(drawn.numpy())).assign(seed=seeds, tokens_cut=cut)


def _draw(package: ModelPackage, rows: pd.DataFrame, seeds: list[int], given: Mapping[str, Any]) -> Tensor:
    guidance = Guidance.of(given["guidance"]).with_settings(**{name: given[name] for name in SETTINGS})
    unprompted = guidance.kinds == ("none",) or not package.reads_text
    condition = package.condition(
        len(rows) if unprompted else [str(prompt) for prompt in rows["prompt"]],
        guidance,
        labels=_labels(package, rows),
        negative_prompts=_texts(rows, "negative_prompt"),
    )
    plan = package.plan(given["sampler"], given["num_inference_steps"], given["eta"])
    return package.drawn(package.sample(condition, seeds=seeds, plan=plan))


def _check_numbers(given: Mapping[str, Any], num_rows: int, num_levels: int) -> None:
    bounds = {
        "seed": (0, _LARGEST_SEED - max(0, num_rows - 1)),
        "eta": (0.0, 1.0),
        "num_inference_steps": (1, num_levels),
    }
    for name, (low, high) in bounds.items():
        if not low <= given[name] <= high:
            raise InvalidRequest(f"{name}: found {given[name]}, wanted a number in [{low}, {high}]", name)


def _named(error: RaverseError) -> str:
    """The message, with the field at its front."""
    text, name = str(error), getattr(error, "param", None)
    return text if name is None or text.startswith(f"{name}:") else f"{name}: {text}"


def _texts(rows: pd.DataFrame, name: str) -> list[str] | None:
    if name not in rows or rows[name].isna().all():
        return None
    return [str(text) for text in rows[name].fillna("")]


def _labels(package: ModelPackage, rows: pd.DataFrame) -> list[int] | None:
    names = _texts(rows, "label")
    if names is None:
        return None
    if unknown := sorted(set(names) - {*package.class_names, ""}):
        raise InvalidRequest(f"unknown label {unknown[0]!r}: give one of {', '.join(package.class_names)}", "label")
    return [package.class_names.index(name) if name else -1 for name in names]


# MLflow runs the file under a name of its own; an import as a module has no effect.
if __name__ != "workflows.release.pyfunc":
    mlflow.models.set_model(PackagedModel())
