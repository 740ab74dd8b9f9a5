"""The verbs of the whole job: `run`, `serve`, and one verb for each stage."""

from __future__ import annotations

import typer

from workflows.cli.command import open_command, run_stage
from workflows.cli.options import ConfigOption, RegisteredOption, SetOption
from workflows.job.outlook import outlook
from workflows.job.pipeline import plan_job, run_job
from workflows.job.report import next_lines, stage_table, write_report
from workflows.job.stages import STAGES
from workflows.runtime.preflight import check_metrics_port, check_port, exclusive_storage
from workflows.runtime.session import ray_session, set_environment

verbs = typer.Typer()
_OWN_MODULES = ("data", "evaluate")
"""Stages whose verbs take more than a configuration."""


@verbs.command()
def run(config: ConfigOption, overrides: SetOption = None) -> None:
    """Runs the whole job: every stage that is not finished yet, then the report.

    Example: raverse run --config digits --set storage.root=runs
    """
    with open_command(config, overrides) as command, exclusive_storage(command.config):
        plan = plan_job(command.config, STAGES)
        result = run_job(command.config, command.progress, plan, ray_session, outlook)
        write_report(command.config, result)
        command.console.print(stage_table(result))
        lines = next_lines(command.config, result, config, overrides or [])
        command.console.print(lines, soft_wrap=True, highlight=False, markup=False)


@verbs.command()
def serve(config: ConfigOption = "digits", model: RegisteredOption = None, overrides: SetOption = None) -> None:
    """Serves a registered model over HTTP until Ctrl-C.

    Example: raverse serve --config digits --model raverse-digits@champion
    """
    with open_command(config, overrides) as command:
        settings = command.config
        check_port(settings)
        check_metrics_port(settings)
        # Ray reads these variables when it is imported.
        set_environment()
        from workflows.serve.app import find_servable
        from workflows.serve.app import serve as serve_model

        reference = model or f"{settings.register_.model_name}@{settings.register_.alias}"
        version = find_servable(settings, reference)
        command.progress.log(f"starting Ray; its log is {settings.run_folder / 'ray.log'}")
        with ray_session(settings, metrics_port=settings.serve.metrics_port):
            serve_model(settings, reference, version, command.progress)


def _add_stage(name: str, help_text: str) -> None:
    def stage(config: ConfigOption, overrides: SetOption = None) -> None:
        run_stage(name, config, overrides)

    verbs.command(name, help=help_text)(stage)


for _stage in STAGES:
    if _stage.name not in _OWN_MODULES:
        _add_stage(_stage.name, _stage.summary)
