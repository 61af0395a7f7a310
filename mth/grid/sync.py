"""Journals to trackers: what one of them missed, or everything into another MLflow store."""

from pathlib import Path

from mth.foundations.errors import UserError
from mth.foundations.progress import Bar
from mth.grid.record import Grid, is_grid, read_grid
from mth.runs.folder import RunFolder
from mth.runs.lock import lock_folder
from mth.runs.trackers.record import TrackedRun
from mth.runs.trackers.tracker import missing, replay


def sync(folder: Path, uri: str | None) -> None:
    """Send every run below `folder`, and those that its grid continues elsewhere. Sending again changes nothing.

    uri: an MLflow store; None: the trackers of each run's configuration. Runs at work are left out: they send their metrics themselves. Raises
    UserError if there is no run, or listing the runs that could not be sent.
    """
    grid = read_grid(folder) if is_grid(folder) else None
    journal = RunFolder(folder).journal_file.name
    found = {path.parent for path in folder.rglob(journal)} | {cell.dir for cell in (grid.cells if grid else []) if cell.dir.is_dir()}
    runs = sorted(path for path in found if RunFolder(path).journal_file.is_file())
    if not runs:
        raise UserError(f"{folder}: no run with a {journal} below it")
    problems, busy = [], 0
    for run_dir in Bar(runs, desc="sync", unit="runs"):
        lock = lock_folder(run_dir)
        if lock is None:
            busy += 1
            Bar.write(f"{run_dir}: at work, sends its metrics itself")
            continue
        with lock:
            problems += [f"{run_dir}: {problem}" for problem in send(run_dir, grid, uri)]
    if problems:
        raise UserError(
            f"{len({line.partition(': ')[0] for line in problems})} of {len(runs)} runs were not sent:\n  " + "\n  ".join(problems)
        )
    print(f"{len(runs) - busy} runs sent")


def send(run_dir: Path, grid: Grid | None, uri: str | None) -> list[str]:
    """Replay one journal. Returns why it did not work, a line for each tracker."""
    try:
        run = tracked_run(run_dir, grid)
    except UserError as error:
        return [str(error)]
    if uri is None and not run.config.tracker.chosen:
        return ["tracker.name=none; give tracker.uri="]
    return replay(run, uri)


def tracked_run(run_dir: Path, grid: Grid | None) -> TrackedRun:
    """A run as its trackers see it, from its folder. A run outside the given grid may be a cell of the grid that it lies in."""
    folder = RunFolder(run_dir)
    if grid is None and is_grid(run_dir.parent):
        grid = read_grid(run_dir.parent)
    root = grid.root if grid else next((path for path in run_dir.parents if path.name == "multirun"), run_dir.parent)
    return TrackedRun(folder.config(), folder, root, grid.folder if grid else None, folder.record().get("facts", {}))


def tracked_words(grid: Grid) -> str:
    """Behind a grid's last line: how many of its cells their trackers have whole, and what to type if that is not all."""
    runs = [tracked_run(cell.dir, grid) for cell in grid.cells if RunFolder(cell.dir).journal_file.is_file()]
    runs = [run for run in runs if run.config.tracker.chosen and run.folder.status]
    lacking = [places for run in runs if (places := missing(run))]
    if not runs:
        return ""
    names = ", ".join(dict.fromkeys(place for places in lacking for place in places))
    remedy = f"\nnot everything is in {names}: python -m mth.grid sync {grid.folder}" if lacking else ""
    return f", {len(runs) - len(lacking)} tracked{remedy}"
