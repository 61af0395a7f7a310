"""Locks on files: held until the process ends, however it ends."""

import fcntl
import os
import stat
import time
from pathlib import Path
from typing import IO

from mth.foundations.errors import UserError, require

POLL_S = 0.2
STRANGE = "is a link, a folder or a pipe, but a lock is a file of its own; remove it"


def hold(path: Path, patience_s: float = 0.0, poll_s: float = POLL_S) -> IO[str] | None:
    """Lock a file, which is created if it is missing. Returns its handle, or None if another process has it for longer than `patience_s`.

    What the file holds stays. poll_s: seconds between two tries. Raises UserError if the path is no plain file, because a link could lead
    anywhere, or if the file system has no locks.
    """
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        require(not path.is_symlink() and not path.is_dir(), f"{path} {STRANGE}")
        raise error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"{path} {STRANGE}")
    handle = open(number, "r+")  # noqa: SIM115 - held open on purpose
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() >= deadline:
                handle.close()
                return None
            time.sleep(poll_s)
        except OSError as error:
            handle.close()
            raise UserError(f"{path}: its file system has no locks ({error.strerror}); mount it with flock, or run elsewhere") from error


def holder(path: Path) -> str | None:
    """What a locked file holds; None if no process has the lock. Leaves no trace."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return handle.read()
    except OSError:  # no lock file, or a file system on which nobody could have locked it
        pass
    return None
