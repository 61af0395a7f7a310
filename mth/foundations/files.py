"""Atomic file writes: a file is either complete or absent."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which is created. On success, sync the file to disk and rename it to `path`, mode 0644.

    On any failure `path` stays as it was and the temporary file is removed. Raises OSError if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file atomically."""
    with atomic(path) as temporary:
        shutil.copyfile(source, temporary)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Returns an empty one if the file is missing or holds no JSON object."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
