"""Files and folders that are there whole or not at all, also when the process that writes them is killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

from workflows.storage.atomic import PartialFile, remove_partial, whole_file, whole_folder, write_whole

HALF = """
import sys, time
from pathlib import Path
from workflows.storage.atomic import whole_file, whole_folder

def write_half(path):
    with path.open("w") as file:
        file.write("new, first half")
        file.flush()
        print("half", flush=True)
        time.sleep(600)

kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "plain":
    write_half(path)
elif kind == "file":
    with whole_file(path) as partial:
        write_half(partial)
else:
    with whole_folder(path) as partial:
        write_half(partial / "content")
"""


def kill_in_the_middle(kind: str, path: Path) -> None:
    """Kills a process that has written half of the new content."""
    command = [sys.executable, "-c", HALF, kind, str(path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.kill()


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    kill_in_the_middle("file", path)
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.read_text() == "new, first half"
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_a_killed_writer_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    kill_in_the_middle("file", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_killed_plain_write_leaves_half_a_file(tmp_path: Path) -> None:
    """The negative control of the two tests above."""
    (tmp_path / "file").write_text("old")
    kill_in_the_middle("plain", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new, first half"


def test_a_killed_writer_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with whole_folder(path) as partial:
        (partial / "content").write_text("old")
    kill_in_the_middle("folder", path)
    assert [(file.name, file.read_text()) for file in path.iterdir()] == [("content", "old")]
    with whole_folder(path) as partial:
        (partial / "other").write_text("new")
    assert [(file.name, file.read_text()) for file in path.iterdir()] == [("other", "new")]


def test_an_exception_leaves_nothing_but_the_old_content(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "old")
    with contextlib.suppress(KeyError), whole_file(tmp_path / "file") as partial:
        partial.write_text("half")
        raise KeyError
    with contextlib.suppress(KeyError), whole_folder(tmp_path / "folder") as folder:
        (folder / "content").write_text("half")
        raise KeyError
    with PartialFile(tmp_path / "never committed") as uncommitted:
        uncommitted.path.write_text("half")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """In a process none of whose files may grow beyond ten bytes."""
    program = """
import resource, sys
from pathlib import Path
from workflows.storage.atomic import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
write_whole(Path(sys.argv[1]), "old")
try:
    write_whole(Path(sys.argv[1]), "new and longer")
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "file")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert "File too large" in done.stdout, done.stderr
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_writers_of_one_name_do_not_mix(tmp_path: Path) -> None:
    """Each writes half, waits for all others, writes the rest: the file is that of one of them."""
    path, barrier = tmp_path / "a" / "file", threading.Barrier(4, timeout=60)

    def write(letter: str) -> None:
        with whole_file(path) as partial, partial.open("w") as file:
            file.write(letter * 100)
            file.flush()
            barrier.wait()
            file.write(letter * 100)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in [letter * 200 for letter in "abcd"]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_may_be_named_by_its_content(tmp_path: Path) -> None:
    with PartialFile(tmp_path / "part") as partial:
        partial.path.write_text("content")
        assert partial.commit("hash") == tmp_path / "hash"
    assert [file.name for file in tmp_path.iterdir()] == ["hash"]


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    """A service of another user reads them: not as the private files of `tempfile`."""
    (tmp_path / "plain").write_text("")
    (tmp_path / "plain folder").mkdir()
    write_whole(tmp_path / "whole", "")
    with whole_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain folder").stat().st_mode
