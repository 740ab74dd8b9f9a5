"""The command line as a user meets it: what it prints, and how it exits."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from workflows.cli import app as cli
from workflows.cli import command, job
from workflows.job.stages import STAGES
from workflows.runtime import preflight, session

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def raverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs `raverse` in this process and an empty folder, outside any cluster."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield lambda *arguments: CliRunner().invoke(cli.app, arguments)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_python(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean | {"PYTHONPATH": str(Path(cli.__file__).parents[2])} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_sentence(done: Result, *parts: str) -> None:
    assert done.exit_code == 1, done.stderr
    assert done.stderr.startswith("raverse: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_help_names_every_stage_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, typer.testing\n"
        "from workflows.cli.app import app\n"
        "print(typer.testing.CliRunner().invoke(app, ['--help']).output)\n"
        "print('HEAVY', sorted({'torch', 'ray', 'mlflow', 'open_clip', 'matplotlib'} & set(sys.modules)))"
    )
    done = run_python("-c", code, folder=tmp_path)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
    for name in ("run", "serve", *(stage.name for stage in STAGES)):
        assert f" {name} " in done.stdout


def test_commands_and_options_are_the_golden_ones() -> None:
    group = typer.main.get_command(cli.app)
    lines = []
    for name, verb in sorted(vars(group)["commands"].items()):
        below = {f"{name} {key}": value for key, value in sorted(getattr(verb, "commands", {}).items())}
        for key, value in ({name: verb} | below).items():
            options = sorted(
                option for parameter in value.params for option in (*parameter.opts, *parameter.secondary_opts)
            )
            lines.append(" ".join((key, *options)))
    assert "\n".join(lines) + "\n" == (GOLDEN / "commands.txt").read_text()


@pytest.mark.parametrize("name", ["run", *(stage.name for stage in STAGES)])
def test_each_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0
    assert "--config" in result.output
    assert "--set" in result.output


def test_unknown_option_is_refused() -> None:
    assert CliRunner().invoke(cli.app, ["run", "--config", "digits", "--speed", "3"]).exit_code == 2


def test_an_error_of_a_process_is_one_sentence(tmp_path: Path) -> None:
    """The other tests of errors call the same `main` in this process."""
    done = run_python("-m", "workflows.cli", "run", "--config", "photos.yaml", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"raverse: .*photos\.yaml.*\n", done.stderr), done.stderr


def test_unknown_key_names_the_nearest(raverse: Callable[..., Result], tmp_path: Path) -> None:
    done = raverse("run", "--config", "digits", "--set", "denoiser.train.step=5")
    assert_one_sentence(done, "denoiser.train.step", "did you mean denoiser.train.steps?")
    assert list(tmp_path.iterdir()) == []


def test_missing_file(raverse: Callable[..., Result]) -> None:
    done = raverse("run", "--config", "photos.yaml")
    assert_one_sentence(done, "photos.yaml", "digits, pictures, shapes")


def test_a_setting_that_does_not_fit_is_named_as_its_option(raverse: Callable[..., Result]) -> None:
    done = raverse("sample", "a seven", "--guidance", "clip", "--apg-eta", "0")
    assert_one_sentence(done, "raverse: --apg-eta: it has no effect", "or take guidance classifier_free")


def test_missing_input_of_a_stage(raverse: Callable[..., Result]) -> None:
    done = raverse("denoiser", "--config", "digits")
    assert_one_sentence(done, "raverse data")


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nonsense", "HOST:PORT"),
        ("http://127.0.0.1:8265", "ray job submit"),
        ("host.invalid:6379", "host.invalid"),
    ],
)
def test_dead_ray_address(
    raverse: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, address: str, part: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    done = raverse("data", "--config", "digits")
    assert_one_sentence(done, address, part)


def test_an_address_where_something_else_answers(
    raverse: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and says nothing, for longer than is waited."""
    monkeypatch.setattr(session, "_HEALTH_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        done = raverse("data", "--config", "digits")
    assert_one_sentence(done, address)


def test_port_in_use_is_told_before_any_work(raverse: Callable[..., Result], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = raverse("run", "--config", "digits", "--set", f"serve.port={port}")
    assert_one_sentence(done, f"127.0.0.1:{port}", "serve.port")
    assert not (tmp_path / "runs" / "artifacts").exists()


def test_unreadable_store_is_told_before_any_work(raverse: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database" * 1000)
    done = raverse("run", "--config", "digits", "--set", f"storage.tracking_uri=sqlite:///{tmp_path}/broken.db")
    assert_one_sentence(done, "broken.db", "not a database")
    assert not (tmp_path / "runs" / "artifacts").exists()


def test_dead_store_server_is_told_before_any_work(raverse: Callable[..., Result], tmp_path: Path) -> None:
    done = raverse("run", "--config", "digits", "--set", "storage.tracking_uri=http://127.0.0.1:1")
    assert_one_sentence(done, "http://127.0.0.1:1")
    assert not (tmp_path / "runs" / "artifacts").exists()


@pytest.mark.parametrize("root", ["/proc/raverse", "file/sub"])
def test_unwritable_folder(raverse: Callable[..., Result], tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    done = raverse("run", "--config", "digits", "--set", f"storage.root={root}")
    assert_one_sentence(done, root, "storage.root=FOLDER")


def test_almost_full_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 5 * 2**20

    preflight.check_writable(tmp_path)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: Usage())
    with pytest.raises(preflight.StorageUnwritable, match="5 MiB free"):
        preflight.check_writable(tmp_path)


def test_one_run_at_a_time(raverse: Callable[..., Result], tmp_path: Path) -> None:
    """The second says which process holds the folder; the lock goes with the process, however that ends."""
    code = (
        "import os, sys\n"
        "from workflows.config.load import load_config\n"
        "from workflows.runtime.preflight import exclusive_storage\n"
        "with exclusive_storage(load_config('digits', [])):\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    pid = holder.stdout.readline().strip()
    done = raverse("run", "--config", "digits", "--set", "serve.port=1")
    assert_one_sentence(done, "in use by another run", pid)
    holder.kill()
    holder.wait()
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = raverse("run", "--config", "digits", "--set", f"serve.port={server.getsockname()[1]}")
    assert_one_sentence(taken, "cannot serve on")


def test_unexpected_error_says_where_the_traceback_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(job, "run_job", broken)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["run", "--config", "digits"])
    assert result.exit_code == 1
    log = tmp_path / "runs" / "digits" / "error.log"
    assert result.stderr == f"raverse: unexpected ZeroDivisionError (a bug): the traceback is in {log}\n"
    assert "in broken" in log.read_text()


def test_full_disk_still_keeps_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError:
        target = command._write_traceback(tmp_path / "run")
    assert "a bug" in target.read_text()
    target.unlink()
