"""Which setting changes the key of which stage: every setting is changed, and the keys are compared.

`python -m tests.workflows.job.stage_keys` writes the golden list. A line of it says

    SETTING: STAGES (STAGES)

First come the stages whose own settings change. In parentheses are those whose inputs have another key. A dash stands
for no stage, and `one value` for a setting that nothing else fits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tests.workflows.conftest import tiny_card
from tests.workflows.options.examples import EXAMPLES
from workflows.config.load import config_keys, load_config
from workflows.config.schema import RunConfig
from workflows.job.pipeline import Planned, Stage, plan_job
from workflows.job.stages import STAGES

GOLDEN = Path(__file__).parents[1] / "golden" / "stage_keys.txt"
ONE_VALUE = "one value"
FREE = [
    f"{part}.train.{item}" for part in ("denoiser", "classifier") for item in ("ema_widths=[0.05,0.1]", "sharding=fsdp")
]
FREE += ["evaluate.guidance_scale=0.5", "evaluate.scales=[0,1]", "denoiser.schedule.kind=flow"]
"""Other values leave `snapshot_every`, `cpu_offload`, `cfg_plus_plus` or `schedule.shift` no choice."""


def leaves() -> list[str]:
    """Every setting that is no section."""
    keys = config_keys()
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


def configurations(folder: Path) -> dict[str, RunConfig]:
    """By heading: a set that the job generates, one's own pictures for a base, and those with all that is auto."""
    for name in ("pictures", "others", "towers"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    for name in ("base", "other-base"):
        (folder / name).mkdir()
        replace(tiny_card(), source=name).save(folder / name)
    own = ("data.source=folder", f"data.path={folder / 'pictures'}", f"clip.source=local-dir:{folder / 'towers'}")
    tuned = (f"denoiser.base={folder / 'base'}", "denoiser.lora.rank=4")
    items = [f"storage.root={folder}", *FREE]
    return {
        "built-in data, trained from nothing": load_config("shapes", items),
        "own pictures, loaded towers, LoRA on a base": load_config("shapes", [*items, *own, *tuned]),
        "own pictures, sizes and lengths by auto": load_config("pictures", [*items, own[1]]),
    }


def lines(folder: Path, stages: Sequence[Stage] = STAGES) -> list[str]:
    """The golden list, from settings in an empty folder."""
    found: list[str] = []
    for heading, config in configurations(folder).items():
        found += [f"# {heading}", *(f"{key}: {_touched(config, stages, key, folder)}" for key in leaves())]
    return found


def _touched(config: RunConfig, stages: Sequence[Stage], key: str, folder: Path) -> str:
    changed = next(_changed(config, key, folder), None)
    if changed is None:
        return ONE_VALUE
    pairs = list(zip(plan_job(config, stages), plan_job(changed, stages), strict=True))
    own = [one.stage.name for one, other in pairs if _own(one) != _own(other)]
    through = [one.stage.name for one, other in pairs if one.key != other.key and one.stage.name not in own]
    return " ".join([*own, f"({' '.join(through)})"] if through else own) or "-"


def _own(planned: Planned) -> dict[str, Any]:
    return {name: value for name, value in planned.settings.items() if name != "inputs"}


def _changed(config: RunConfig, key: str, folder: Path) -> Iterator[RunConfig]:
    """Valid configurations in which this setting alone is another."""
    *sections, name = key.split(".")
    for candidate in _candidates(config, key, folder):
        values = config.model_dump(by_alias=True)
        reduce(dict.__getitem__, sections, values)[name] = candidate
        try:
            changed = RunConfig.model_validate(values)
        except ValidationError:
            continue
        if changed != config:
            yield changed


def _candidates(config: RunConfig, key: str, folder: Path) -> list[Any]:
    known = {
        "data.path": [str(folder / "others")],
        "data.background": ["black"],
        "clip.source": [f"local-dir:{folder}"],
        "denoiser.base": [str(folder / "other-base")],
        "clip.context_length": [32],
        **{f"{part}.train.sample_every": [7] for part in ("denoiser", "classifier")},
        **{f"{part}.minutes": [7.0] for part in ("clip", "denoiser.train", "classifier.train")},
        "sweep.schedules": [("linear",)],
        "register.gate.guidance": ["classifier_free"],
        **{f"evaluate.{name}": [values[name]] for name, values in EXAMPLES.items()},
    }
    value, annotation = _find(config, key)
    if key in known or get_origin(annotation) is Literal:
        return known.get(key, list(get_args(annotation)))
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value / 2, 0.5]
        case str():
            return [f"{value}-other"]
        case None:
            return ["other", ("other",)]
        case _:
            return [value[:-1] if value else ("other",)]


def _find(config: RunConfig, key: str) -> tuple[Any, Any]:
    """The value and the type of a setting."""
    found: Any = config
    for name in key.split("."):
        section: BaseModel = found
        field = next(field for field, info in type(section).model_fields.items() if (info.alias or field) == name)
        found, annotation = getattr(section, field), type(section).model_fields[field].annotation
    return found, annotation


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        GOLDEN.write_text("\n".join(lines(Path(place))) + "\n")
