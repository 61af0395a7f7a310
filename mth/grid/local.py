"""Cells as processes on this machine: so many at a time, each with its share of the cores and a GPU of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mth.errors import UserError
from mth.files import read_json
from mth.grid.record import Entry, Grid, hold_launcher, launcher_at, log_event
from mth.runs import host
from mth.signals import listen

POLL_S = 0.2


def visible_gpus() -> list[str]:
    """GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def slots(jobs: int | None, gpus: list[str], cores: int) -> list[dict[str, str]]:
    """Environment of each place for a cell: its GPU, in turn, and its share of the cores."""
    count = jobs or len(gpus) or 1
    threads = {} if count == 1 else {"OMP_NUM_THREADS": str(max(1, cores // count))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(count)]


def log_path(entry: Entry) -> Path:
    """Where a cell's output goes."""
    return entry.dir / "log.txt"


def run(grid: Grid, entries: list[Entry], watch: Callable[[], object]) -> None:
    """Run these cells to their end; calls `watch` while waiting. A failing cell does not stop the others.

    SIGINT and SIGTERM ask the running cells to save, wait for them (once more: do not wait), and leave the rest for a resume. The cells are sessions of their own:
    they survive the launcher. Raises UserError when another launcher is at work on this grid, SystemExit after a signal.
    """
    held = hold_launcher(grid.folder)
    if held is None:
        raise UserError(f"{grid.folder}: a launcher is already at work on this grid (process and host: {launcher_at(grid.folder)})")
    log_event(grid.folder, "submitted", cells=[entry.name for entry in entries], jobs={})
    free = slots(entries[0].launcher["jobs"], visible_gpus(), len(os.sched_getaffinity(0)))
    todo = list(entries)
    running: dict[subprocess.Popen[bytes], tuple[Entry, dict[str, str]]] = {}
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    requests, told, words = listen(), False, "what ran was saved"
    try:
        while running or (todo and not requests.stop):
            while todo and free and not requests.stop:
                entry, place = todo.pop(0), free.pop(0)
                running[start(grid, entry, place)] = (entry, place)
            for process in [process for process in running if process.poll() is not None]:
                entry, place = running.pop(process)
                free.append(place)
                log_event(grid.folder, "ended", cell=entry.name, code=process.returncode)
            if requests.stop and not told:
                told = True
                for process in running:
                    process.terminate()
            watch()
            time.sleep(POLL_S)
    except KeyboardInterrupt:  # the second one
        for process in running if not told else ():
            process.terminate()
        words = "what runs saves and ends by itself"
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        held.close()
    if requests.stop:
        print(f"\nstopped; {words}. Go on with: python -m mth.grid resume {os.path.relpath(grid.folder)}", file=sys.stderr)
        raise SystemExit(128 + (requests.received or 0))


def frozen(grid: Grid) -> dict[str, str]:
    """Variables with which python finds the frozen code first, and not what lies in the current folder."""
    return {"PYTHONPATH": os.pathsep.join([str(grid.code), *filter(None, [os.environ.get("PYTHONPATH")])]), "PYTHONSAFEPATH": "1"}


def start(grid: Grid, entry: Entry, place: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start one cell from the frozen code, where the grid's command was given, its output appended to its log."""
    threads = {key: os.environ[key] for key in ("OMP_NUM_THREADS",) if key in os.environ}  # the user's own choice wins
    environment = os.environ | place | threads | frozen(grid)
    with open(log_path(entry), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "mth.grid.worker", str(entry.dir), str(grid.folder)],
            env=environment,
            cwd=grid.cwd if grid.cwd.is_dir() else None,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(entries: list[Entry]) -> None:
    """Ask cells whose launcher is gone to save and end. Raises UserError naming the machine when one runs elsewhere."""
    for entry in entries:
        run = read_json(entry.dir / "run.json")
        if run.get("host") != host():
            raise UserError(f"{entry.name} runs on {run.get('host')}: cancel it there")
        with suppress(ProcessLookupError):
            os.kill(run["pid"], signal.SIGTERM)
