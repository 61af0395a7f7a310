"""Locks a run's folder: one process at a time, one configuration for ever."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mth.config.identity import differing_keys, identity
from mth.config.schema import Config
from mth.config.stored import to_plain
from mth.foundations.errors import UserError
from mth.foundations.files import remove_leftovers, write_json
from mth.foundations.locks import hold, holder
from mth.foundations.provenance import code_version
from mth.runs.contents import contents, known_contents, refuse_change
from mth.runs.folder import DONE, RunFolder, host_name


def lock_folder(run_dir: Path, patience_s: float = 0.0) -> IO[str] | None:
    """The folder's lock, held until the process ends however it ends; None if another process has it for longer than `patience_s`.

    Raises UserError as `hold` does.
    """
    return hold(run_dir / ".lock", patience_s)


def is_locked(run_dir: Path) -> bool:
    """Whether a process is at work in the folder; leaves no trace in it."""
    return holder(run_dir / ".lock") is not None


@contextmanager
def lock_run(run_dir: Path, config: Config, patience_s: float = 0.0) -> Iterator[RunFolder]:
    """Within, the folder belongs to this process and configuration, for a new run or one to be continued.

    patience_s: how long to wait for a process that is about to end, as after a requeue. Writes config.yaml and run.json, and removes what
    killed processes left half written, unless the run is finished: then nothing is touched. Raises UserError, and leaves everything as it is,
    if another process runs there, if the folder belongs to another configuration or read other data or weights, or if it has checkpoints of
    which none can be read.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    handle = lock_folder(run_dir, patience_s)
    if handle is None:
        raise UserError(f"run_dir={run_dir} is in use by another process; wait for it, or choose another folder")
    with handle:
        folder = RunFolder(run_dir)
        if folder.exists:
            check_same(run_dir, config)
        _refuse_if_none_is_readable(run_dir)
        if folder.status not in DONE:
            for place in (run_dir, folder.checkpoints, folder.samples, folder.gradients):
                remove_leftovers(place)
            folder.write_config(config)
            record = run_record(config, folder.record().get("starts", 0) + 1)
            write_json(folder.record_file, record | {"contents": known_contents(run_dir) | contents(config)})
            folder.summary_file.unlink(missing_ok=True)  # of an earlier start: a kill from here on must not look like that end
        yield folder


def _refuse_if_none_is_readable(run_dir: Path) -> None:
    from mth.runs.checkpoint import checkpoints_of, latest_checkpoint  # loads torch, which looking at runs does not need

    checkpoint, warnings = latest_checkpoint(run_dir) if checkpoints_of(run_dir) else (None, [])
    if checkpoint is None and warnings:
        fault = warnings[0].removesuffix("; using the one before")
        raise UserError(f"run_dir={run_dir}: {fault}; no checkpoint is left to continue from; put one back, or give force=true to run anew")


def check_same(run_dir: Path, config: Config) -> None:
    """Raises UserError, naming the keys, if the folder's configuration is not this one, or if what its run read has changed."""
    if identity(stored := RunFolder(run_dir).config()) != identity(config):
        different = ", ".join(differing_keys(to_plain(stored), to_plain(config)))
        raise UserError(f"run_dir={run_dir} belongs to another configuration: {different}; give the same values or another folder")
    refuse_change(run_dir, config)


def run_record(config: Config, starts: int) -> dict[str, Any]:
    """What run.json holds: who runs what, where, with which code."""
    job, array, task = (os.environ.get(f"SLURM_{key}") for key in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
    return {
        "identity": identity(config),
        "label": config.label,
        "code": code_version(),
        "host": host_name(),
        "pid": os.getpid(),
        "job": f"{array}_{task}" if array else job,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "starts": starts,
    }
