"""Cells as processes on this machine: so many at a time, each with its share of the cores and a GPU of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mth.foundations.errors import UserError
from mth.foundations.signals import HANDLED, listen
from mth.grid.record import Grid, GridCell, hold_launcher, launcher_at, log_event
from mth.grid.resident import NEVER_STARTED, Fork, Job, Resident, fits
from mth.grid.slots import slots, visible_gpus
from mth.runs.folder import RunFolder, host_name

POLL_S = 0.2


def run(grid: Grid, cells: list[GridCell], watch: Callable[[], object]) -> None:
    """Run these cells to their end; calls `watch` while waiting. A failing cell does not stop the others.

    SIGINT, SIGTERM and the others of `listen` ask the running cells to save, wait for them (a second signal: do not wait), and leave the
    rest for a resume. Cells have sessions of their own, so they survive the launcher. Raises UserError if another launcher is at work on
    this grid, SystemExit after a signal.
    """
    held = hold_launcher(grid.folder)
    if held is None:
        raise UserError(f"{grid.folder}: a launcher is already at work on this grid (process and host: {launcher_at(grid.folder)})")
    log_event(grid.folder, "submitted", cells=[cell.name for cell in cells], jobs={})
    free = slots(cells[0].launcher["jobs"], visible_gpus(), len(os.sched_getaffinity(0)))
    resident = None
    if cells[0].launcher["resident"] and len(cells) > 1:
        resident = Resident(**surroundings(grid, free[0]), log=grid.folder / "resident.log")
    waiting = list(cells)
    running: dict[subprocess.Popen[bytes] | Fork, tuple[GridCell, dict[str, str]]] = {}
    previous = {number: signal.getsignal(number) for number in HANDLED}
    requests, told, words = listen(), False, "what ran was saved"
    try:
        while running or (waiting and not requests.stop):
            while waiting and free and not requests.stop:
                cell, slot = waiting.pop(0), free.pop(0)
                running[start(grid, cell, slot, resident)] = (cell, slot)
            for process in [process for process in running if process.poll() is not None]:
                cell, slot = running.pop(process)
                free.append(slot)
                if process.returncode == NEVER_STARTED:
                    waiting.insert(0, cell)
                else:
                    log_event(grid.folder, "ended", cell=cell.name, code=process.returncode)
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
        if resident is not None:
            resident.close()
    if requests.stop:
        print(f"\nstopped; {words}. Go on with: python -m mth.grid resume {os.path.relpath(grid.folder)}", file=sys.stderr)
        raise SystemExit(128 + (requests.received or 0))


def frozen(grid: Grid) -> dict[str, str]:
    """Environment variables that make python import the frozen code, whatever lies in the current folder."""
    return {"PYTHONPATH": os.pathsep.join([str(grid.code), *filter(None, [os.environ.get("PYTHONPATH")])]), "PYTHONSAFEPATH": "1"}


def surroundings(grid: Grid, slot: dict[str, str]) -> dict[str, Any]:
    """Environment and current folder of a cell's process: the frozen code, the slot, the folder where the grid's command was typed."""
    return {"env": os.environ | slot | frozen(grid), "cwd": grid.cwd if grid.cwd.is_dir() else None}


def start(grid: Grid, cell: GridCell, slot: dict[str, str], resident: Resident | None = None) -> "subprocess.Popen[bytes] | Fork":
    """Start one cell, as a fork of the resident process where that is possible. Appends its output to its log."""
    if resident is not None and not resident.gone and fits(RunFolder(cell.dir).config()):
        return resident.start(Job(cell.dir, grid.folder, slot))
    with open(RunFolder(cell.dir).log_file, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "mth.grid.worker", str(cell.dir), str(grid.folder)],
            **surroundings(grid, slot),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def refuse_elsewhere(cells: list[GridCell]) -> None:
    """Raises UserError naming the machine if a cell does not run on this one."""
    for cell in cells:
        host = RunFolder(cell.dir).record().get("host")
        if host != host_name():
            raise UserError(f"{cell.name} runs on {host}: cancel it there")


def stop(cells: list[GridCell]) -> None:
    """Ask cells of this machine whose launcher is gone to save and end."""
    for cell in cells:
        with suppress(ProcessLookupError):
            os.kill(RunFolder(cell.dir).record()["pid"], signal.SIGTERM)
