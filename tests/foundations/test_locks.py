"""Locks and temporary files: nothing that belongs to somebody else is touched, and nothing of a killed process stays."""

import os
import socket
import subprocess
import sys

import pytest

from mth.foundations.errors import UserError
from mth.foundations.files import remove_leftovers, write_text
from mth.foundations.locks import hold, holder
from mth.grid.record import hold_launcher, launcher_at
from mth.runs.lock import is_locked, lock_folder


@pytest.mark.parametrize(("name", "take"), [(".lock", lock_folder), (".launcher", hold_launcher)])
@pytest.mark.parametrize("target", ["precious.txt", "new.txt"])
def test_a_lock_that_is_a_link_is_refused_and_touches_nothing(tmp_path, name, take, target):
    precious = tmp_path / "precious.txt"
    precious.write_text("years of work")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=rf"{name} is a link, a folder or a pipe, .*; remove it"):
        take(folder)
    assert not is_locked(folder) and launcher_at(folder) is None
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "new.txt").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_in_place_of_a_lock_is_refused_and_blocks_nobody(tmp_path, make):
    make(tmp_path / ".lock")
    assert not is_locked(tmp_path)
    with pytest.raises(UserError, match="remove it"):
        lock_folder(tmp_path)


def test_a_lock_keeps_what_its_file_holds_and_is_free_when_its_holder_is_gone(tmp_path):
    path = tmp_path / "lock"
    path.write_text("7 n1")
    assert holder(path) is None
    with hold(path):
        assert holder(path) == "7 n1"
        assert hold(path) is None
        assert hold(path, 0.3) is None
    assert holder(path) is None
    assert holder(tmp_path / "none") is None and not (tmp_path / "none").exists()


def test_temporary_files_of_killed_processes_are_removed_and_no_others(tmp_path):
    """A process is killed while it writes; then those of others stay: a process at work, another machine, another program."""
    code = "import os, signal, sys; from pathlib import Path; from mth.foundations.files import atomic\n"
    code += "with atomic(Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "journal.jsonl")], check=False)
    (left,) = tmp_path.iterdir()
    here, dead = socket.gethostname(), left.name.split(".")[-2].partition("@")[0]
    kept = [f".a.{os.getppid()}@{here}.tmp", f".a.{dead}@{here}x.tmp", f".a.{dead}.tmp", ".editor.tmp", f"a.{dead}@{here}.tmp"]
    old = [f".b.{dead}@other.tmp", f".b.{dead}.tmp"]
    for name in (*kept, *old):
        write_text(tmp_path / name, "")
    for name in old:
        os.utime(tmp_path / name, (0, 0))
    write_text(tmp_path / f".code.{dead}@{here}.tmp" / "mth" / "train.py", "")
    (tmp_path / f".link.{dead}@{here}.tmp").symlink_to(tmp_path.parent)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, f".link.{dead}@{here}.tmp"])
    assert tmp_path.is_dir()
