"""The commands for machines other than this one: `doctor`, `submit`, `render`, `stack`, `plan`.

Libraries are imported by the commands that need them, so that the command line answers at once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from workflows import __version__
from workflows.cli.command import open_command
from workflows.cli.options import ConfigOption, SetOption

verbs = typer.Typer()
GpusOption = Annotated[int, typer.Option("--gpus", min=0, help="GPUs that the job needs.")]


@verbs.command()
def doctor(
    config: ConfigOption = "digits",
    gpus: GpusOption = 0,
    bucket: Annotated[
        list[str] | None, typer.Option("--bucket", help="URL that must be writable, such as s3://NAME/PATH.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Looks for what would stop a job here, and on the cluster in RAY_ADDRESS; exits with 1 if anything would.

    Example: raverse doctor --config digits --bucket s3://models/raverse
    """
    with open_command(config, overrides) as command:
        from workflows.deploy.doctor.findings import findings_text
        from workflows.deploy.doctor.machine import check_machine
        from workflows.deploy.doctor.stores import check_bucket
        from workflows.runtime.session import cluster_address

        on_cluster = cluster_address() is not None
        found = check_machine(command.config, 0 if on_cluster else gpus)
        found += [check_bucket(url) for url in bucket or []]
        if on_cluster:
            from workflows.deploy.doctor.cluster import check_nodes

            found += check_nodes(command.config, gpus)
        command.console.print(findings_text(found), soft_wrap=True, highlight=False, markup=False)
        if any(one.level == "problem" for one in found):
            raise typer.Exit(1)


@verbs.command()
def submit(
    address: Annotated[str, typer.Option("--address", envvar="RAVERSE_DASHBOARD", help="URL of Ray's dashboard.")],
    config: ConfigOption = "digits",
    overrides: SetOption = None,
    gpus: GpusOption = 0,
    working_dir: Annotated[Path, typer.Option(help="Travels with the job, less what .rayignore names.")] = Path(),
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML of a Ray runtime environment. Default: deploy/runtime_env.yaml.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log until the job ends; Ctrl-C leaves it running.")] = True,
    status: Annotated[str | None, typer.Option(metavar="JOB", help="Tell the state of a job instead.")] = None,
    logs: Annotated[str | None, typer.Option(metavar="JOB", help="Follow a job instead.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="End a job instead.")] = None,
) -> None:
    """Runs the whole job on a cluster, as `raverse run` does here; the exit status is the job's.

    Example: raverse submit --address http://127.0.0.1:8265 --config digits --set storage.root=/shared/raverse
    """
    with open_command(config, overrides) as command:
        from workflows.deploy import submit as jobs

        cluster = jobs.Cluster(address)
        if status is not None:
            return typer.echo(jobs.state(cluster, status))
        if stop is not None:
            return typer.echo("stopping" if jobs.stop(cluster, stop) else "it had ended already")
        job = logs
        if job is None:
            folder = working_dir.absolute()
            jobs.check_travels(command.config, config, folder)
            cluster.check(gpus, command.config.denoiser.train.least_workers)
            line = jobs.entrypoint(config, overrides or [], gpus)
            job = jobs.submit(cluster, line, jobs.runtime_env(folder, runtime_env))
            typer.echo(f"job {job}; `raverse submit --address {address} --stop {job}` ends it", err=True)
        if follow:
            raise typer.Exit(jobs.follow(cluster, job, partial(typer.echo, nl=False)))
    return None


stack = typer.Typer(no_args_is_help=True, help="PostgreSQL, MLflow, a Ray cluster and the service, on this machine.")
verbs.add_typer(stack, name="stack")


@stack.command()
def start(
    config: ConfigOption = "digits",
    overrides: SetOption = None,
    preset: Annotated[
        Literal["plain", "secure"], typer.Option("--preset", help="secure: passwords and an API key.")
    ] = "plain",
    ray_port: Annotated[int, typer.Option(help="Of Ray's control store.")] = 6379,
    dashboard_port: Annotated[int, typer.Option(help="Of Ray's dashboard.")] = 8265,
    mlflow_port: Annotated[int, typer.Option(help="Of MLflow.")] = 5000,
) -> None:
    """Starts them on the loopback interface, and runs the job first where there is no model yet.

    Example: raverse stack start --config digits --preset secure
    """
    with open_command(config, overrides) as command:
        from workflows.deploy.stack.stack import Ports, Stack

        made = Stack(command.config, Ports(ray_port, dashboard_port, mlflow_port), preset)
        made.start(
            ["--config", config, *(word for one in overrides or [] for word in ("--set", one))], command.progress
        )
        command.console.print(made.summary(), soft_wrap=True, highlight=False)


@stack.command()
def stop(config: ConfigOption = "digits", overrides: SetOption = None) -> None:
    """Ends what `start` has started, and nothing else; data and passwords stay.

    Example: raverse stack stop --config digits
    """
    with open_command(config, overrides) as command:
        from workflows.deploy.stack.processes import Processes
        from workflows.deploy.stack.stack import stack_folder

        ended = Processes(stack_folder(command.config)).stop_all()
        command.progress.log(f"ended {', '.join(ended)}" if ended else "nothing was running")


@verbs.command()
def plan(
    images: Annotated[
        list[str], typer.Option("--images", metavar="N[@PIXELS]", help="Different pictures; once per resolution.")
    ],
    model: Annotated[Literal["sd2"], typer.Option("--model", help="sd2: Stable Diffusion 2.")] = "sd2",
    gpu: Annotated[Literal["a100", "h100", "h200"], typer.Option("--gpu", help="The kind.")] = "a100",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many train.")] = 8,
    epochs: Annotated[float, typer.Option(min=0.01, help="How often training sees each picture.")] = 1.0,
    load: Annotated[float, typer.Option(min=0.0, help="Pictures a second that the service draws.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Of a picture.")] = 50,
    price: Annotated[float, typer.Option(min=0.0, help="Of a GPU-hour, in any currency.")] = 2.0,
    storage_price: Annotated[float, typer.Option(min=0.0, help="Of a TB for a month, in the same.")] = 23.0,
) -> None:
    """Counts storage, GPU-hours and replicas; deploy/SCALING.md says from what.

    Example: raverse plan --images 2e9 --gpus 256 --load 20
    """
    from diffusion_core.errors import RaverseError
    from workflows.deploy.plan import MODELS, estimate, estimate_text, read_phase

    try:
        phases = [read_phase(text) for text in images]
        made = estimate(MODELS[model], phases, gpu, epochs=epochs, images_per_second=load, num_steps=steps)
    except RaverseError as error:
        typer.echo(f"raverse: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(estimate_text(made, gpus, price, storage_price))


render = typer.Typer(no_args_is_help=True, help="Writes files for other tools, from the configuration of a run.")
verbs.add_typer(render, name="render")


@render.command()
def kubernetes(
    config: ConfigOption = "digits",
    overrides: SetOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("kubernetes"),
    overlay: Annotated[
        Literal["base", "cpu-small", "gpu"] | None,
        typer.Option("--overlay", help="Of deploy/kubernetes. Default: gpu with --gpus, else cpu-small."),
    ] = None,
    preset: Annotated[
        Literal["plain", "secure"], typer.Option("--preset", help="secure: passwords and network policies.")
    ] = "plain",
    image: Annotated[
        str, typer.Option("--image", help="NAME:TAG of NAME:TAG-cpu and NAME:TAG-cuda.")
    ] = f"raverse:{__version__}",
    gpus: GpusOption = 0,
) -> None:
    """Writes a kustomization over deploy/kubernetes: `kubectl apply -k FOLDER` does the rest.

    Example: raverse render kubernetes --config digits --preset secure --out my-cluster
    """
    with open_command(config, overrides) as command:
        from workflows.deploy.kubernetes import render as write

        chosen = overlay or ("gpu" if gpus else "cpu-small")
        for file in write(command.config, out, chosen, preset, image, gpus):
            command.console.print(str(file), soft_wrap=True, highlight=False)
        command.progress.log(f"look at them, then: kubectl apply -k {out}")
