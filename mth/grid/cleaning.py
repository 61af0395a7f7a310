"""Removes runs that are superseded: they took no step, or the same run has finished in another folder. Never one that ended in order."""

import shutil
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from mth.analysis.glance import RUNNING, Glance
from mth.config.identity import identity
from mth.foundations.errors import UserError
from mth.grid.record import is_grid, read_grid
from mth.grid.state import PENDING, cell_states
from mth.runs.contents import known_contents
from mth.runs.folder import DONE, RunFolder
from mth.runs.journal import read_journal
from mth.runs.lock import lock_folder
from mth.runs.search import run_folders


@dataclass(frozen=True)
class Superseded:
    """A run that nobody will miss, and why. size: of its folder, in bytes."""

    run: Glance
    why: str
    size: int


def queued_runs(folder: Path) -> set[Path]:
    """Folders of runs that a grid is running or has in its queue: any grid below the folder, or beside those that are.

    A grid may go on with a run inside an older grid. Raises UserError if a grid is of another version of mth.
    """
    grids = [folder, *folder.parents[:2], *(path.parent for path in folder.rglob("grid.json"))]
    roots = {folder.resolve(), *(read_grid(path).root.resolve() for path in grids if is_grid(path))}
    found = {path.parent.resolve() for root in roots for path in root.rglob("grid.json")}
    return {cell.entry.dir.resolve() for path in found for cell in cell_states(read_grid(path)) if cell.state in PENDING}


def superseded(runs: Sequence[Glance], queued: Set[Path]) -> list[Superseded]:
    """Those of the runs that are superseded. queued: see `queued_runs`.

    A run is superseded if it has not finished or collapsed, no process is at work in it and no grid has it in its queue, and either it never
    took a training step, or another of the runs is the same one, read the same files, and has finished or collapsed. A run of which anything is
    damaged is never superseded.
    """
    finished: dict[str, list[Glance]] = {}
    if any(_may_go(run) for run in runs):
        for run in runs:
            if run.status in DONE and (name := _identity(run)):
                finished.setdefault(name, []).append(run)
    found = [(run, _why(run, finished)) for run in runs if _may_go(run) and run.path.resolve() not in queued]
    return [Superseded(run, why, _size(run.path)) for run, why in found if why]


def _may_go(run: Glance) -> bool:
    return run.status not in (*DONE, RUNNING) and not run.problems


def _why(run: Glance, finished: dict[str, list[Glance]]) -> str:
    """Why a run is superseded; empty if it is not."""
    name = _identity(run)
    if not name or [*run_folders(run.path)] != [run.path]:
        return ""
    if run.step < 1 and not any(RunFolder(run.path).checkpoints.glob("*")):
        return "took no step"
    for twin in finished.get(name, []):
        if _same_files(run.path, twin.path):
            return f"{twin.status} in {twin.path}"
    return ""


def _identity(run: Glance) -> str:
    """Which run it is; empty if its configuration cannot be read."""
    try:
        return identity(RunFolder(run.path).config())
    except UserError:
        return ""


def _same_files(left: Path, right: Path) -> bool:
    """Whether nothing is known to differ in what two runs read."""
    mine, other = known_contents(left), known_contents(right)
    return all(mine[key] == other[key] for key in mine.keys() & other.keys())


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def remove(item: Superseded) -> str:
    """Delete a superseded run's folder. Returns why it was left alone; empty if it is gone."""
    path = item.run.path
    try:
        handle = lock_folder(path)
    except (UserError, OSError) as error:
        return str(error)
    if handle is None:
        return "a process is at work in it now"
    with handle:
        if RunFolder(path).status in DONE or max((entry.step for entry in read_journal(path)), default=0) != item.run.step:
            return "it has gone on meanwhile"
        try:
            shutil.rmtree(path)
        except OSError as error:
            return str(error)
    return ""
