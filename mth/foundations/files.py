"""Atomic file writes: a file is either complete or absent. Digests of files."""

import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

NOT_IN_JSON = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # numbers that JSON lacks, by the text that stands for them

LEFTOVER = re.compile(r"\..+\.(?P<pid>\d+)(@(?P<host>[^@]+))?\.tmp")  # names of temporary files
DAY_S = 24 * 3600


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which is created. On success, sync the file to disk and rename it to `path`, mode 0644.

    The folder is synced last, so that the new name is on disk too. On any failure `path` stays as it was and the temporary file is removed.
    Raises OSError if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(handle)
    finally:
        os.close(handle)


def temporary_path(path: Path) -> Path:
    """Where this process makes what will be `path`; a process that is killed leaves it to `remove_leftovers`."""
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that processes of this machine left in a folder when they were killed.

    Those of other machines, and of older versions, which did not name the machine, are removed after a day.
    """
    for path in folder.glob(".*.tmp"):
        match = LEFTOVER.fullmatch(path.name)
        with suppress(OSError):
            if match is None or path.is_symlink():
                continue
            if match["host"] == socket.gethostname():
                gone = int(match["pid"]) == os.getpid() or not Path(f"/proc/{match['pid']}").exists()
            else:
                gone = path.stat().st_mtime < time.time() - DAY_S
            if gone and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif gone:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, to_json(data, indent=1) + "\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file atomically."""
    with atomic(path) as temporary:
        shutil.copyfile(source, temporary)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Returns an empty one if the file is missing or holds no JSON object."""
    try:
        data = from_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def to_json(data: Any, indent: int | None = None) -> str:
    """JSON text that any reader accepts. A number that JSON lacks becomes its name, see NOT_IN_JSON."""
    return json.dumps(_named(data), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """What `to_json` was given. Reads a bare NaN too, which earlier versions wrote. Raises ValueError if the text is no JSON."""
    return _numbers(json.loads(text))


def _named(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return _inside(_named, data)


def _numbers(data: Any) -> Any:
    return NOT_IN_JSON.get(data, data) if isinstance(data, str) else _inside(_numbers, data)


def _inside(convert: Callable[[Any], Any], data: Any) -> Any:
    """The data with what lists and dictionaries hold converted."""
    if isinstance(data, dict):
        return {key: convert(value) for key, value in data.items()}
    return [convert(value) for value in data] if isinstance(data, list | tuple) else data


def digest(file: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal. A process reads the file again only if its size or time has changed."""
    state = file.stat()
    return _digest(str(file), state.st_size, state.st_mtime_ns)


@cache
def _digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
