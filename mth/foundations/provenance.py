"""Which code ran, and where: the git commit, a frozen copy of the package, the versions of all dependencies."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mth.foundations.files import read_json, temporary_path, write_json
from mth.foundations.paths import PACKAGE, conf_dir

SNAPSHOT = "snapshot.json"
DISTRIBUTION = "sparse-rlvr"  # the import name stays mth


def code_version() -> dict[str, Any]:
    """release, commit (None outside git), and dirty (uncommitted changes in mth/ or conf/). A frozen copy reports the code it was copied from."""
    frozen = read_json(PACKAGE.parent / SNAPSHOT)
    if frozen:
        return frozen
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != PACKAGE.parent:
        return {"release": _release(), "commit": None, "dirty": False}
    changed = _git("status", "--porcelain", "--", "mth", "conf")
    return {"release": _release(), "commit": _git("rev-parse", "HEAD"), "dirty": bool(changed)}


def commit_name(code: dict[str, Any]) -> str:
    """A short name of what `code_version` returned."""
    return f"{(code.get('commit') or 'no git')[:12]}{' (changed)' if code.get('dirty') else ''}"


def environment() -> dict[str, Any]:
    """Python, platform, and the version of every installed package."""
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def snapshot(folder: Path, more: Mapping[str, Path] | None = None) -> Path:
    """Copy the package and conf/ as they are now to `folder`/<hash of the files>, unless that copy exists. Returns the path for PYTHONPATH.

    more: further files by their name in the copy.
    """
    more = more or {}
    sources = {PACKAGE.name: PACKAGE} | ({f"{PACKAGE.name}/conf": conf_dir()} if not conf_dir().is_relative_to(PACKAGE) else {})
    digest = hashlib.sha256()
    for name, source in sources.items():
        for path in sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            digest.update(f"{name}/{path.relative_to(source)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    for name, path in sorted(more.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    frozen = folder / digest.hexdigest()[:12]
    if frozen.is_dir():
        return frozen
    folder.mkdir(parents=True, exist_ok=True)
    version = code_version()
    fresh = temporary_path(frozen)
    try:
        for name, source in sources.items():
            shutil.copytree(source, fresh / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name, path in more.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, fresh / name)
        write_json(fresh / SNAPSHOT, version)
        os.rename(fresh, frozen)
    except OSError:
        if not frozen.is_dir():  # unless another launch made the same copy first
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return frozen


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", PACKAGE.parent, *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _release() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
