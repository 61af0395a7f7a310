"""Which code ran, and in which environment: the git commit, a frozen copy of the package, the versions of what it stands on."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from mth.files import read_json, write_json
from mth.paths import PACKAGE

SNAPSHOT = "snapshot.json"


def code_version() -> dict[str, Any]:
    """commit (None outside git), dirty (uncommitted changes in mth/ or conf/), and the release. A frozen copy says what it was copied from."""
    frozen = read_json(PACKAGE.parent / SNAPSHOT)
    if frozen:
        return frozen
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != PACKAGE.parent:
        return {"release": _release(), "commit": None, "dirty": False}
    changed = _git("status", "--porcelain", "--", "mth", "conf")
    return {"release": _release(), "commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}


def commit_name(code: dict[str, Any]) -> str:
    """What `code_version` returned, in a word or two for people."""
    return f"{(code.get('commit') or 'no git')[:12]}{' (changed)' if code.get('dirty') else ''}"


def environment() -> dict[str, Any]:
    """Python, platform, and the version of every installed distribution."""
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def snapshot(folder: Path) -> Path:
    """Copy the package as it is now to `folder`/<hash of its files>, unless that copy is there; returns the path for PYTHONPATH."""
    files = sorted(path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    place = folder / digest.hexdigest()[:12]
    if place.is_dir():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    version = code_version()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        fresh = Path(temporary) / place.name
        shutil.copytree(PACKAGE, fresh / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        write_json(fresh / SNAPSHOT, version)
        try:
            os.rename(fresh, place)
        except OSError:
            if not place.is_dir():  # else another launch made the same copy first
                raise
    return place


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", PACKAGE.parent, *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _release() -> str:
    try:
        return metadata.version("mth")
    except metadata.PackageNotFoundError:
        return "unknown"
