"""The commands that work on models: `sample`, `evaluate`, `sweep`, `promote`, `rollback`, `models`.

Libraries are imported by the commands that need them, so that the command line answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_core.strength import DEFAULT_STRENGTH
from workflows.cli.command import Command, open_command, run_stage
from workflows.cli.options import (
    ConfigOption,
    GivenOption,
    ModelOption,
    SamplerOption,
    SetOption,
    StoreOption,
    naming_options,
    with_guidance,
)
from workflows.options.guidance import Guidance
from workflows.options.samplers import DEFAULT_SAMPLER, ETA_READERS
from workflows.runtime.preflight import exclusive_storage
from workflows.runtime.session import ray_session

if TYPE_CHECKING:
    from workflows.release.promote import Promotion

verbs = typer.Typer()


@verbs.command()
@with_guidance
def sample(
    *,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    model: ModelOption = None,
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")] = Path("sample.png"),
    num: Annotated[int, typer.Option("--num", "-n", help="Pictures, side by side.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first picture; picture i has seed + i.")] = 0,
    sampler: SamplerOption = DEFAULT_SAMPLER,
    steps: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    eta: Annotated[float, typer.Option(help=f"Noise of {ETA_READERS}, in [0, 1].")] = 0.0,
    guidance: Callable[[], Guidance],
    negative: Annotated[str | None, typer.Option("--negative", help="What the picture does not show.")] = None,
    gif: Annotated[Path | None, typer.Option(help="Also writes the predicted picture at every step.")] = None,
    init: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(help=f"Share of the steps made from --init, in (0, 1]; default {DEFAULT_STRENGTH}."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White where --init is drawn anew, black where it is kept.")] = None,
    invert: Annotated[Path | None, typer.Option(help="A picture whose DDIM latent is drawn from.")] = None,
    invert_prompt: Annotated[
        str | None, typer.Option(help="What --invert shows, where PROMPT asks for something else.")
    ] = None,
    zoom: Annotated[int | None, typer.Option(min=1, help="Repeats each pixel; default: to 128 a side.")] = None,
    config: StoreOption = "digits",
    overrides: SetOption = None,
) -> None:
    """Draws a picture with a registered model or a package.

    Example: raverse sample "a handwritten seven" --model raverse-digits@champion --seed 7
    """
    with open_command(config, overrides) as command, naming_options():
        from workflows.draw.request import DrawRequest

        asked = DrawRequest(
            prompt,
            num=num,
            seed=seed,
            sampler=sampler,
            steps=steps,
            eta=eta,
            guidance=guidance(),
            negative=negative,
            init=init,
            strength=strength,
            mask=mask,
            invert=invert,
            invert_prompt=invert_prompt,
        )
        _draw_files(command, asked, model, out, gif, zoom)


def _draw_files(command: Command, asked: Any, model: str | None, out: Path, gif: Path | None, zoom: int | None) -> None:
    import torch

    from workflows.draw.drawing import draw
    from workflows.draw.files import write_gif, write_png
    from workflows.model.model import ModelPackage
    from workflows.package.files import check_draws_pictures
    from workflows.package.source import find_model

    source = find_model(command.config, model)
    package = ModelPackage.load(source.folder, "cuda" if torch.cuda.is_available() else "cpu")
    check_draws_pictures(package.card, source.label)
    drawing = draw(package, asked)
    write_png(out, drawing.images, zoom)
    if gif is not None:
        write_gif(gif, drawing.frames, zoom)
    for name, text in (("the prompt", asked.prompt), ("--negative", asked.negative)):
        if cut := package.tokens_cut(text or ""):
            command.console.print(f"the model did not read the last {cut} tokens of {name}: make it shorter")
    files = " and ".join(str(path) for path in (out, gif) if path is not None)
    command.console.print(
        f"{files}: {source.label}, seed {', '.join(str(seed) for seed in drawing.seeds)}",
        soft_wrap=True,
        highlight=False,
    )


@verbs.command()
def evaluate(config: ConfigOption, model: ModelOption = None, overrides: SetOption = None) -> None:
    """Without --model: the job's stage. With it: every figure of that model, against the configuration's data.

    Example: raverse evaluate --config digits --model raverse-digits/1
    """
    if model is None:
        run_stage("evaluate", config, overrides)
        return
    with open_command(config, overrides) as command, exclusive_storage(command.config):
        from workflows.data.dataset import Dataset
        from workflows.evaluate.full import evaluate_model
        from workflows.package.source import find_model

        source = find_model(command.config, model)
        dataset = Dataset.open(data_folder(command.config))
        with ray_session(command.config):
            report = evaluate_model(command.config, source, dataset, command.progress)
        command.console.print(report.text(), soft_wrap=True, highlight=False)


@verbs.command()
def sweep(config: ConfigOption, model: ModelOption = None, overrides: SetOption = None) -> None:
    """Measures a model over samplers, steps, eta, guidance scales and spacings; writes CSV and PNG.

    Example: raverse sweep --config digits --model raverse-digits@champion
    """
    with open_command(config, overrides) as command, exclusive_storage(command.config):
        from workflows.data.dataset import Dataset
        from workflows.package.source import find_model
        from workflows.sweep.run import run_sweep

        source = find_model(command.config, model)
        dataset = Dataset.open(data_folder(command.config))
        with ray_session(command.config):
            folder = run_sweep(command.config, source, dataset, command.progress)
        command.console.print(f"sweep: {folder}", soft_wrap=True, highlight=False)


@verbs.command()
def promote(
    model: Annotated[str, typer.Argument(help="NAME/VERSION or NAME@ALIAS: the challenger.")],
    config: GivenOption = None,
    force: Annotated[bool, typer.Option("--force", help="Without the gate; a tag of the version says so.")] = False,
    overrides: SetOption = None,
) -> None:
    """Gives a version the champion's alias, if it passes the gate against the version that holds it.

    Without --config, rules and data are those that the version was made with. Then --set storage.root says where the
    registry is, if it is not in the folder `runs`.

    Example: raverse promote raverse-digits/2
    """
    with open_command(config or "digits", overrides) as command, exclusive_storage(command.config):
        from workflows.package.reference import find_version
        from workflows.release.promote import holder_of, version_config
        from workflows.release.promote import promote as promote_version
        from workflows.tracking.store import tracking_uri

        uri, settings = tracking_uri(command.config), command.config
        version = find_version(uri, model)
        versions = [version]
        if config is None:
            # An imported version was made with no data: those of the holder stand for it.
            holder = holder_of(uri, version.name, settings.register_.alias)
            versions += [] if holder is None else [holder]
            settings = version_config(settings.storage, versions, overrides) or settings
        with ray_session(settings):
            open_data = partial(_data_of, settings, versions, given=config is not None)
            done = promote_version(settings, version, open_data, command.progress, force=force)
        _tell_promotion(command, done, settings.register_.alias)


def _data_of(settings: Any, versions: list[Any], *, given: bool) -> Any:
    """The data of a configuration that was given, or else those that one of the versions was made with.

    Raises:
        PromotionRefused: nothing says what the data are.
    """
    from workflows.data.dataset import Dataset
    from workflows.errors import PromotionRefused
    from workflows.release.promote import CONFIG_TAG, version_data

    if not given:
        found = version_data(versions)
        if found is not None:
            return found
        if not any(CONFIG_TAG in version.tags for version in versions):
            raise PromotionRefused(
                "nothing says which samples to compare with, since both versions are imported: give the --config of a "
                "job whose data suit them, or --force"
            )
    return Dataset.open(data_folder(settings))


@verbs.command()
def rollback(
    name: Annotated[str | None, typer.Argument(help="Registered model; default: the configuration's.")] = None,
    config: StoreOption = "digits",
    overrides: SetOption = None,
) -> None:
    """Gives the champion's alias back to the version that held it before.

    Example: raverse rollback raverse-digits
    """
    with open_command(config, overrides) as command:
        from workflows.release.promote import rollback as roll_back

        settings = command.config
        done = roll_back(settings, name or settings.register_.model_name)
        _tell_promotion(command, done, settings.register_.alias)


@verbs.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Registered model; default: the configuration's.")] = None,
    config: StoreOption = "digits",
    overrides: SetOption = None,
) -> None:
    """Lists the versions of a model, their aliases, figures and hashes.

    Example: raverse models raverse-digits
    """
    with open_command(config, overrides) as command:
        from rich.table import Table

        from workflows.release.promote import list_versions

        settings = command.config
        rows = list_versions(settings, name or settings.register_.model_name)
        table = Table(*rows[0], title=name or settings.register_.model_name)
        for row in rows:
            table.add_row(*row.values())
        command.console.print(table)


def data_folder(config: Any) -> Path:
    """Where the finished `data` artifact of a configuration lies.

    Raises:
        MissingArtifact: the stage has not been run.
    """
    from workflows.job.pipeline import plan_job
    from workflows.job.stages import STAGES
    from workflows.runtime.artifact import require_artifact

    rows = {planned.stage.name: planned for planned in plan_job(config, STAGES)}
    return require_artifact(rows["data"].folder, "data").folder


def _tell_promotion(command: Command, done: Promotion, alias: str) -> None:
    from workflows.errors import PromotionRefused

    name = done.version.name
    if done.comparison is not None:
        command.console.print(done.comparison.text(), soft_wrap=True, highlight=False, markup=False)
    if not done.moved:
        raise PromotionRefused(
            f"{name} version {done.version.version} is not promoted, version {done.previous} stays `{alias}`: "
            f"{done.reason}; or give --force"
        )
    before = "" if done.previous in (None, done.version.version) else f", was version {done.previous}"
    command.console.print(f"{name}@{alias} is version {done.version.version}{before} ({done.reason})", highlight=False)
