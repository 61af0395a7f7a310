"""Run folders: one process at a time, one configuration for ever, found again by what they compute."""

import fcntl
import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import OmegaConf

from mth.config import Collect, Config, differing_keys, flat, identity, read_config, to_plain, trajectory
from mth.errors import UserError
from mth.files import copy_file, read_json, write_json, write_text
from mth.provenance import code_version
from mth.tracking import JOURNAL

DONE = ("finished", "collapsed")
# Cheap to compare in a stored configuration before its identity is computed in full.
TELLING = ("sparsity.percent", "mask_seed", "seed.train", "lr.value", "model.name", "task.name")


def lock(run_dir: Path) -> IO[str] | None:
    """The folder's lock, held until the process ends however it ends; None when another process has it.

    Raises UserError on a file system that has no locks.
    """
    handle = open(run_dir / ".lock", "w")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        raise UserError(f"{run_dir}: its file system has no locks ({error.strerror}); mount it with flock, or run elsewhere") from error
    return handle


def is_locked(run_dir: Path) -> bool:
    """Whether a process is at work in the folder; leaves no trace in it."""
    try:
        with open(run_dir / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a file system on which no run could have locked it
        return False
    return False


def status_of(run_dir: Path) -> str | None:
    """finished, collapsed, failed or interrupted, as the run itself left it; None when it has not ended in an orderly way."""
    return read_json(run_dir / "summary.json").get("status")


def claim(run_dir: Path, config: Config, patience_s: float = 0.0) -> IO[str]:
    """Take a folder for a run of this configuration, new or to be continued; returns its lock.

    patience_s: how long to wait for a process that is about to end, as after a requeue. Writes `run.json`: identity, code, host, process,
    job, number of starts. Raises UserError, and leaves everything as it is, when another process runs there, when the folder belongs to
    another configuration, or when it has checkpoints of which none can be read.
    """
    from mth.checkpoint import checkpoints_of, latest_checkpoint  # loads torch, which looking at runs does not need

    run_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    while (handle := lock(run_dir)) is None:
        if time.monotonic() >= deadline:
            raise UserError(f"run_dir={run_dir} is in use by another process; wait for it, or choose another folder")
        time.sleep(0.5)
    saved = run_dir / "config.yaml"
    if saved.is_file():
        check_same(run_dir, config)
    if checkpoints_of(run_dir):
        checkpoint, warnings = latest_checkpoint(run_dir)
        if checkpoint is None:
            raise UserError(
                f"run_dir={run_dir}: {warnings[0].removesuffix('; using the one before')}; no checkpoint is left to continue from"
            )
    write_text(saved, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
    write_json(run_dir / "run.json", whereabouts(config, read_json(run_dir / "run.json").get("starts", 0) + 1))
    if status_of(run_dir) not in DONE:
        (run_dir / "summary.json").unlink(missing_ok=True)  # of an earlier start: a kill from here on must not look like that end
    return handle


def check_same(run_dir: Path, config: Config) -> None:
    """Raise UserError, naming the keys, when the folder's configuration is not this one."""
    if identity(stored := read_config(run_dir / "config.yaml")) != identity(config):
        different = ", ".join(differing_keys(to_plain(stored), to_plain(config)))
        raise UserError(f"run_dir={run_dir} belongs to another configuration: {different}; give the same values or another folder")


def whereabouts(config: Config, starts: int) -> dict[str, Any]:
    """What `run.json` holds: who runs what, where, with which code."""
    job, array, task = (os.environ.get(f"SLURM_{key}") for key in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    return {
        "identity": identity(config),
        "label": config.label,
        "code": code_version(),
        "host": host(),
        "pid": os.getpid(),
        "job": f"{array}_{task}" if array else job,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "starts": starts,
    }


def host() -> str:
    """This machine, by SLURM's name for it inside a job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def note(run_dir: Path, **facts: Any) -> None:
    """Add to `run.json`."""
    write_json(run_dir / "run.json", read_json(run_dir / "run.json") | facts)


def known_runs(roots: Iterable[Path], configs: Sequence[Config]) -> tuple[dict[str, list[Path]], dict[str, Path]]:
    """What the run folders under `roots` hold of `configs`, by identity: the folders of the same run, newest first, and of the longest
    finished run that is its beginning the folder.

    A run that keeps gradients begins at step 0, for these are not in a checkpoint. Damaged folders are passed over.
    """
    wanted = {trajectory(config) for config in configs}
    telling = {_telling(to_plain(config)) for config in configs}
    found: dict[str, dict[Path, tuple[int, float]]] = {}  # steps, and when it was made
    for path in (path for root in dict.fromkeys(roots) for path in root.rglob("config.yaml")):
        try:
            data = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            if isinstance(data, dict) and _telling(data) in telling:
                stored = read_config(path)
                if (name := trajectory(stored)) in wanted:
                    found.setdefault(name, {})[path.parent.resolve()] = stored.train.steps, path.parent.stat().st_mtime
        except (UserError, yaml.YAMLError, OSError):
            continue
    same, beginnings = {}, {}
    for config in configs:
        name, steps, folders = identity(config), config.train.steps, found.get(trajectory(config), {})
        newest = sorted(folders, key=lambda path: -folders[path][1])
        if equal := [path for path in newest if folders[path][0] == steps]:
            same[name] = equal
        shorter = [path for path in newest if folders[path][0] < steps and status_of(path) in DONE and _last_checkpoint(path).is_file()]
        if shorter and config.spectrum.mode is Collect.none:
            beginnings[name] = max(shorter, key=lambda path: folders[path][0])
    return same, beginnings


def runs_of(roots: Iterable[Path], configs: Sequence[Config]) -> dict[str, list[Path]]:
    """Run folders under `roots` by identity, for the identities of `configs` only; newest first."""
    return known_runs(roots, configs)[0]


def shorter_runs(roots: Iterable[Path], configs: Sequence[Config]) -> dict[str, Path]:
    """By identity of `configs`: the folder under `roots` of the longest finished run that is its beginning."""
    return known_runs(roots, configs)[1]


def _telling(data: dict[str, Any]) -> tuple[str, ...]:
    values = flat(data)
    return tuple(str(values.get(key)) for key in TELLING)


def _last_checkpoint(run_dir: Path) -> Path:
    """Where the checkpoint of an ended run's last step is, unless it was deleted."""
    from mth.checkpoint import checkpoint_path

    return checkpoint_path(run_dir, read_json(run_dir / "summary.json").get("steps", 0))


def start_from(source: Path, run_dir: Path) -> None:
    """Give a new run's folder the journal and the last checkpoint of a shorter run, so that it goes on where that one ended."""
    last, summary, run = _last_checkpoint(source), read_json(source / "summary.json"), read_json(source / "run.json")
    copy_file(source / JOURNAL, run_dir / JOURNAL)
    write_json(run_dir / "beginning.json", {"run": str(source), "steps": summary["steps"], "code": run.get("code")})
    copy_file(last, run_dir / "checkpoints" / last.name)  # what makes the folder one to be continued, hence at the end


def find_unfinished(root: Path, config: Config) -> Path | None:
    """The newest run folder under `root` with this configuration's identity that has not finished and in which nothing runs."""
    folders = runs_of([root], [config]).get(identity(config), [])
    return next((folder for folder in folders if status_of(folder) not in DONE and not is_locked(folder)), None)
