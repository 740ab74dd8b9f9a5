"""A PostgreSQL of one's own, in a folder, on the loopback interface: from the binaries of this machine.

PostgreSQL refuses to run as root; then it runs as the user `postgres` of Debian's package, or as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from workflows.deploy.stack.processes import Processes, Started, wait_until
from workflows.errors import PreflightFailed, StageFailed

USER: Final = "mlflow"
_DEBIAN: Final = Path("/usr/lib/postgresql")
_UNPRIVILEGED: Final = ("postgres", "nobody")
_SECONDS: Final = 60.0


def binaries(path: str | None = None) -> Path:
    """The folder of `initdb`, `postgres` and the rest.

    Raises:
        PreflightFailed: there is none.
    """
    found = shutil.which("initdb", path=path)
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(_DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if path is None and folders:
        return folders[-1]
    raise PreflightFailed(
        f"no PostgreSQL: neither initdb on the PATH nor {_DEBIAN}/*/bin; `apt-get install postgresql`, or the "
        "package of your system"
    )


def start_postgres(processes: Processes, port: int, password: str) -> Started:
    """Starts the database in `postgres/` below the folder of the processes; makes it the first time.

    Args:
        processes: where it is written down.
        port: on the loopback interface.
        password: of the user and database `mlflow`.

    Raises:
        PreflightFailed: no PostgreSQL on this machine.
        StageFailed: it could not be made or started.
    """
    programs, user = binaries(), _owner()
    home = processes.folder / "postgres"
    data = home / "data"
    environment = os.environ | {"PGPASSWORD": password, "LC_ALL": "C.UTF-8"}
    if not (data / "PG_VERSION").is_file():
        _make(programs, home, password, environment, user)
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    started = processes.start("postgres", command, environment, user)
    where = ["-h", "127.0.0.1", "-p", str(port), "-U", USER]
    wait_until(lambda: _quietly([programs / "pg_isready", *where], environment), started, _SECONDS)
    if not _quietly([programs / "psql", *where, "-c", "select 1", USER], environment):
        _run([programs / "createdb", *where, USER], environment)
    return started


def _make(programs: Path, home: Path, password: str, environment: Mapping[str, str], user: int | None) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    secret = home / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if user is not None:
        for path in (home, secret):
            os.chown(path, user, -1)
    options: list[str | Path] = [
        "--username",
        USER,
        "--pwfile",
        secret,
        "--auth",
        "scram-sha-256",
        "--encoding",
        "UTF8",
    ]
    try:
        _run([programs / "initdb", "-D", home / "data", *options, "--locale", "C.UTF-8"], environment, user)
    finally:
        secret.unlink()


def _owner() -> int | None:
    """The user that PostgreSQL runs as, where it cannot be this one."""
    if os.geteuid() != 0:
        return None
    names = {one.pw_name: one.pw_uid for one in pwd.getpwall()}
    return next(names[name] for name in _UNPRIVILEGED if name in names)


def _run(command: list[str | Path], environment: Mapping[str, str], user: int | None = None) -> None:
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, user=user, cwd="/", check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        raise StageFailed(f"{Path(command[0]).name} failed: {lines[-1]}")


def _quietly(command: list[str | Path], environment: Mapping[str, str]) -> bool:
    return subprocess.run(command, env=dict(environment), capture_output=True, check=False).returncode == 0
