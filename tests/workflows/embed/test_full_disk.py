"""A disk that is full or read-only: one sentence, what was finished is kept, and the next run goes on from there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.tools import need
from tests.workflows.data import samples_own as samples
from tests.workflows.data.test_import_own import build, contents
from workflows.cli import app as cli
from workflows.errors import StorageUnwritable

MOUNT = shutil.which("mount")
_PAGE = 4096


class Disk:
    """A file system in memory of a size that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def mount(self, options: str) -> bool:
        again = ["-o", f"remount,{options}"] if self.folder.is_mount() else ["-t", "tmpfs", "-o", options]
        command = [str(MOUNT), *again, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "disk")
    mounted = MOUNT is not None and os.geteuid() == 0 and found.mount("size=64m")
    need(mounted or None, "the right to mount a tmpfs", "run the tests as root", in_ci=False)
    yield found
    subprocess.run(["umount", "--lazy", str(found.folder)], check=True)


def pages(folder: Path, pattern: str) -> int:
    """Bytes that the files take on the disk."""
    return sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in folder.glob(pattern))


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_import_goes_on_when_there_is_space_again(tmp_path: Path, disk: Disk) -> None:
    source = samples.write_sidecar(tmp_path / "source", 5000)
    build(tmp_path / "whole", source)
    folder = disk.folder / "data"
    assert disk.mount(f"size={7 * pages(tmp_path / 'whole', '**/*.parquet') // 10}")
    with pytest.raises(StorageUnwritable, match=r"cannot write .*part-.*(No space|Errno 28)") as full:
        build(folder, source)
    assert "\n" not in str(full.value)
    kept = stamps(folder)
    assert any("rejected" not in path.name for path in kept)
    assert disk.mount("size=64m")
    build(folder, source)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("options", ["size=8k", "ro"])
def test_the_command_says_it_in_one_sentence(options: str, disk: Disk) -> None:
    assert disk.mount(options)
    result = CliRunner().invoke(
        cli.app, ["data", "--config", "digits", "--set", f"storage.root={disk.folder / 'runs'}"]
    )
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "storage.root" in result.stderr
