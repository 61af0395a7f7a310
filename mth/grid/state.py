"""The state of every cell: from the files that runs and launchers leave, and from SLURM while it remembers."""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mth.grid import slurm
from mth.grid.record import Grid, GridCell, is_grid, launcher_at, read_events, read_grid
from mth.runs.folder import DONE, RunFolder
from mth.runs.journal import read_journal
from mth.runs.lock import is_locked
from mth.runs.metrics import PASS_AT_1, REWARD, eval_metric, with_error

PENDING = ("queued", "running")


@dataclass(frozen=True)
class CellState:
    """state: queued, running, finished, collapsed, failed, interrupted, killed, cancelled, or new (never submitted)."""

    entry: GridCell
    state: str
    step: int
    steps: int
    reward: float | None
    passes: dict[str, tuple[float, float, float | None]]  # task -> first and last pass@1, and the standard error of the last
    seconds: float
    node: str
    job: str
    reason: str


def cell_states(grid: Grid) -> list[CellState]:
    """The state of every cell, in the grid's order."""
    events = read_events(grid.folder)
    jobs: dict[str, str] = {}
    ended: dict[str, str] = {}
    for event in events:  # in order: a later submission replaces what was known
        if event["event"] == "submitted":
            for name in event["cells"]:
                jobs[name] = event["jobs"].get(name, "")
                ended.pop(name, None)
        elif event["event"] == "ended":
            if ended.get(event["cell"]) != "cancelled":
                ended[event["cell"]] = _exit_words(event["code"])
        elif event["event"] == "cancelled":
            ended |= dict.fromkeys(event["cells"], "cancelled")
    known = slurm.query(job for entry in grid.cells if (job := jobs.get(entry.name)) and RunFolder(entry.dir).status not in DONE)
    launching = launcher_at(grid.folder) is not None
    waiting = {name for name, job in jobs.items() if launching and not job and name not in ended}
    states = (_state(entry, jobs.get(entry.name), known, entry.name in waiting, ended.get(entry.name)) for entry in grid.cells)
    return [_with_setup_fault(grid, cell) for cell in states]


def _with_setup_fault(grid: Grid, cell: CellState) -> CellState:
    """The state of a cell whose job ended before the run began says which line of its setup failed."""
    if not cell.job or cell.state not in ("failed", "killed", "interrupted") or RunFolder(cell.entry.dir).record().get("job") == cell.job:
        return cell
    fault = slurm.setup_fault(slurm.log_path(grid, cell.job))
    return replace(cell, state="failed", reason=fault) if fault is not None else cell


def _state(entry: GridCell, job: str | None, known: dict[str, slurm.JobState], waiting: bool, ended: str | None) -> CellState:
    """job: id in SLURM, empty for a local process, None when never submitted. waiting: a launcher on this machine will start it."""
    folder = RunFolder(entry.dir)
    summary, run = folder.summary(), folder.record()
    status, reason, of_slurm = summary.status, summary.reason or "", known.get(job or "")
    if status in DONE:
        state = status
    elif is_locked(entry.dir):
        state, reason = "running", ""
    elif of_slurm is not None and of_slurm.active:
        state = "queued" if of_slurm.state in ("PENDING", "REQUEUED") else "running"
        reason = of_slurm.reason if state == "queued" else ""
    elif waiting:
        state, reason = "queued", ""
    elif entry.found == "busy" and job is None:
        state, reason = running_elsewhere(entry.dir) or status or "new", ""
    elif status is not None:
        state = "cancelled" if ended == "cancelled" and status == "interrupted" else status
    elif ended == "cancelled" or (of_slurm is not None and of_slurm.state.startswith("CANCELLED")):
        state = "cancelled"
    elif run or job or ended:
        state = "failed" if of_slurm is not None or ended else "killed"
        reason = (
            "its folder was deleted"
            if not entry.dir.is_dir()
            else ended or (_slurm_words(of_slurm) if of_slurm is not None else "ended without a word: killed, or its machine was lost")
        )
    else:
        state = "new"
    return _describe(entry, str(state), reason, job or run.get("job") or "", run.get("host") or (of_slurm.node if of_slurm else ""))


def _describe(entry: GridCell, state: str, reason: str, job: str, node: str) -> CellState:
    journal = RunFolder(entry.dir).journal_file
    step, reward, passes, seconds = progress(entry.dir, tuple(entry.tasks), journal.stat().st_size if journal.is_file() else 0)
    return CellState(entry, state, step, entry.steps, reward, dict(passes), seconds, node, job, reason)


@lru_cache(maxsize=1024)
def progress(
    run_dir: Path, tasks: tuple[str, ...], size: int
) -> tuple[int, float | None, dict[str, tuple[float, float, float | None]], float]:
    """Last step, last mean reward, first and last pass@1 per task with the error of the last, seconds, of a journal. size: its bytes, part of the cache's key."""
    journal = read_journal(run_dir) if size else []
    rewards = [line.metrics[REWARD] for line in journal if REWARD in line.metrics]
    passes = {}
    for task in tasks:
        key, error = eval_metric(task, PASS_AT_1), eval_metric(task, with_error(PASS_AT_1))
        values = [(line.metrics[key], line.metrics.get(error)) for line in journal if key in line.metrics]
        if values:
            passes[task] = (values[0][0], *values[-1])
    seconds = sum(value for line in journal for key, value in line.metrics.items() if key.startswith("seconds/"))
    return journal[-1].step if journal else 0, rewards[-1] if rewards else None, passes, seconds


def running_elsewhere(run_dir: Path) -> str | None:
    """queued or running, if a process works in the folder or another grid has it in its queue; else None."""
    if is_locked(run_dir):
        return "running"
    if is_grid(run_dir.parent):
        for cell in cell_states(read_grid(run_dir.parent)):
            if cell.entry.dir.resolve() == run_dir.resolve() and cell.state in PENDING and cell.entry.found != "busy":
                return cell.state
    return None


def _exit_words(code: int) -> str:
    return f"killed by signal {-code}{' (out of memory?)' if code == -9 else ''}" if code < 0 else f"exit status {code}"


def _slurm_words(state: slurm.JobState) -> str:
    return "SLURM: " + re.sub(r"_", " ", state.state.lower())
