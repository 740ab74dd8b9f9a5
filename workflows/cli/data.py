"""The verbs of data: the stage `data`, and `data check`, which looks through captioned images before any job runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from rich.console import Console
from rich.table import Table

from workflows.cli.command import run_stage
from workflows.cli.options import SetOption
from workflows.config.schema import DataConfig
from workflows.job.stages import stage
from workflows.options.sources import AUTO, FORMATS

verbs = typer.Typer()
data = typer.Typer(add_completion=False)
verbs.add_typer(data, name="data")

_MOST_ROWS: Final = 10
_WIDEST: Final = 60
_WHOLE: Final = 4000
_DEFAULTS = {name: field.default for name, field in DataConfig.model_fields.items()}


@data.callback(invoke_without_command=True, help=stage("data").summary)
def build(
    context: typer.Context,
    config: Annotated[
        str | None, typer.Option("--config", help="digits, shapes, pictures, vectors, or the path of a YAML file.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Runs the data stage, unless a verb below `data` is given."""
    if context.invoked_subcommand is None:
        if config is None:
            raise typer.BadParameter(
                "missing: give digits, shapes, pictures, vectors, or a YAML file", param_hint="--config"
            )
        run_stage("data", config, overrides)


@data.command("check")
def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder, file or URL of captioned images.")],
    source: Annotated[str, typer.Option(help="Format, as data.source; auto: found out.")] = AUTO,
    image_column: Annotated[str | None, typer.Option(help="As data.image_column.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="As data.caption_column.")] = None,
    label_column: Annotated[str | None, typer.Option(help="As data.label_column.")] = None,
    vector_columns: Annotated[
        str | None, typer.Option(help="As data.vector_columns, with commas between them.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="As data.image_size.")] = _DEFAULTS["image_size"],
    channels: Annotated[int, typer.Option(min=1, max=3, help="As data.channels.")] = _DEFAULTS["channels"],
    max_bad_fraction: Annotated[float, typer.Option(min=0, max=1, help="As data.max_bad_fraction.")] = _DEFAULTS[
        "max_bad_fraction"
    ],
    max_pixels: Annotated[int, typer.Option(min=1, help="As data.max_pixels.")] = _DEFAULTS["max_pixels"],
    max_caption_chars: Annotated[int, typer.Option(min=1, help="As data.max_caption_chars.")] = _DEFAULTS[
        "max_caption_chars"
    ],
    background: Annotated[str, typer.Option(help="As data.background.")] = _DEFAULTS["background"],
    caption_template: Annotated[str, typer.Option(help="As data.caption_template.")] = _DEFAULTS["caption_template"],
    label_missing: Annotated[str, typer.Option(help="As data.label_missing.")] = _DEFAULTS["label_missing"],
    context_length: Annotated[
        int | None, typer.Option(min=3, help="Tokens that a caption may have; default: 99 of 100 captions fit.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Records to look at.")] = 2000,
    every: Annotated[bool, typer.Option("--all", help="Look at every record.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.html.")] = Path("data-check"),
) -> None:
    """Says what is in captioned images and what is wrong with them.

    Exit status: 0 they can be used; 1 they cannot, or more than --max-bad-fraction of them.

    Example: raverse data check photos/
    """
    from pydantic import ValidationError

    from diffusion_core.errors import RaverseError
    from workflows.data.remedies import as_options, printable
    from workflows.runtime.failure import explain

    try:
        usable = _check(
            DataConfig(
                source=_known(source),
                path=path,
                image_column=image_column,
                caption_column=caption_column,
                label_column=label_column,
                vector_columns=tuple(vector_columns.split(",")) if vector_columns else None,
                image_size=image_size,
                channels=3 if channels == 3 else 1,
                max_bad_fraction=max_bad_fraction,
                max_pixels=max_pixels,
                max_caption_chars=max_caption_chars,
                background=background,
                caption_template=caption_template,
                label_missing=cast("Any", label_missing),
            ),
            context_length,
            None if every else sample,
            out,
        )
    except (RaverseError, OSError) as error:
        typer.echo(f"raverse: {printable(as_options(explain(error) or str(error)), _WHOLE)}", err=True)
        raise typer.Exit(1) from None
    except ValidationError as error:
        wrong = error.errors()[0]
        raise typer.BadParameter(wrong["msg"], param_hint=f"--{str(wrong['loc'][0]).replace('_', '-')}") from None
    raise typer.Exit(0 if usable else 1)


def _known(source: str) -> str:
    if source not in (AUTO, *FORMATS):
        raise typer.BadParameter(f"{source!r}: give {AUTO} or one of {', '.join(FORMATS)}", param_hint="--source")
    return source


def _check(config: DataConfig, context_length: int | None, limit: int | None, out: Path) -> bool:
    from workflows.data.check import check_data
    from workflows.data.check_page import page

    report, thumbnails = check_data(config, limit, context_length)
    report = {name: value if name == "next" else _worded(value) for name, value in report.items()}
    bad = report["records"] - report["usable"]
    report["training"] = _outlook(report) if report["usable"] else []
    usable = bool(report["usable"]) and bad <= config.max_bad_fraction * report["records"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report | {"ok": usable}, indent=2, ensure_ascii=False))
    (out / "report.html").write_text(page(report, thumbnails, usable=usable))
    _show(report, out, usable=usable)
    return usable


def _worded(value: Any) -> Any:
    """A part of the report with settings named as the options of this command."""
    from workflows.data.remedies import as_options

    if isinstance(value, str):
        return as_options(value)
    if isinstance(value, dict):
        return {_worded(name): _worded(inner) for name, inner in value.items()}
    return [_worded(inner) for inner in value] if isinstance(value, list) else value


def _outlook(report: dict[str, Any]) -> list[str]:
    """How long the proposed command trains on this machine, as far as the records that were looked at can say."""
    from workflows.config.load import load_config
    from workflows.data.rows import rows_of
    from workflows.job.outlook import evaluated, lengths
    from workflows.train.here import Subject

    words = shlex.split(report["next"])
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    config = load_config(words[words.index("--config") + 1], settings)
    num_train = max(1, round((1.0 - config.data.held_out) * report["usable"] * _all_of(report)))
    labels = len(report["labels"])
    subject = Subject(rows_of(report["shape"]), num_train, labels, labels or 256, report["captions"]["context_length"])
    return [*lengths(config, subject), evaluated(config, labelled=bool(labels))]


def _all_of(report: dict[str, Any]) -> float:
    """How many times what was looked at there is, by the pieces of the data."""
    return 1.0 if report["complete"] else max(1.0, report["times"])


def _show(report: dict[str, Any], out: Path, *, usable: bool) -> None:
    from workflows.data.check_page import tables, verdict
    from workflows.data.remedies import printable

    console = Console(soft_wrap=True, highlight=False, markup=False)
    for title, values in tables(report).items():
        if values:
            table = Table(box=None, show_header=False, title=title, title_justify="left", padding=(0, 2, 0, 0))
            for name, value in list(values.items())[:_MOST_ROWS]:
                table.add_row(printable(str(name), _WIDEST), printable(str(value)))
            more = len(values) - _MOST_ROWS
            console.print(table)
            console.print(*([f"and {more} more"] if more > 0 else []))
    if report["mixture"]:
        console.print(report["mixture"])
    for row in report["unusable_examples"]:
        console.print(f"  {row['name']}: {row['reason']}")
    console.print(verdict(report, usable=usable))
    console.print(f"see {out / 'report.html'} and {out / 'report.json'}")
    if usable:
        for line in report["training"]:
            console.print(line)
        console.print(f"next: {report['next']}")
    else:
        console.print("mend them, or raise --max-bad-fraction")
