"""Journals to MLflow: what a store or server missed, or everything into another one."""

from pathlib import Path

from mth.config.choices import TrackerName
from mth.foundations.errors import UserError
from mth.foundations.progress import Bar
from mth.grid.record import is_grid, read_grid
from mth.runs.folder import RunFolder
from mth.runs.journal import read_journal
from mth.runs.lock import is_locked
from mth.runs.mlflow import MLFLOW_STATUS, MlflowWriter, default_uri, run_tags


def sync(folder: Path, uri: str | None) -> None:
    """Send every run below `folder`, and those that its grid continues elsewhere. Sending again changes nothing.

    uri: the store; None: that of each run's configuration. Runs at work are left out: they send their metrics themselves. Raises UserError
    if there is no run, or listing the runs that could not be sent.
    """
    grid = read_grid(folder) if is_grid(folder) else None
    journal = RunFolder(folder).journal_file.name
    found = {path.parent for path in folder.rglob(journal)} | {cell.dir for cell in (grid.cells if grid else []) if cell.dir.is_dir()}
    runs = sorted(path for path in found if RunFolder(path).journal_file.is_file())
    if not runs:
        raise UserError(f"{folder}: no run with a {journal} below it")
    problems = []
    for run_dir in Bar(runs, desc="sync", unit="runs"):
        if is_locked(run_dir):
            Bar.write(f"{run_dir}: at work, sends its metrics itself")
        elif problem := send(run_dir, grid.root if grid else _root(run_dir), grid.folder if grid else None, uri):
            problems.append(f"{run_dir}: {problem}")
    if problems:
        raise UserError(f"{len(problems)} of {len(runs)} runs were not sent:\n  " + "\n  ".join(problems))
    print(f"{len(runs)} runs sent")


def send(run_dir: Path, root: Path, grid: Path | None, uri: str | None) -> str | None:
    """Replay one journal. Returns None, or why it did not work."""
    folder = RunFolder(run_dir)
    try:
        config = folder.config()
    except UserError as error:
        return str(error)
    target = uri or config.tracker.uri or default_uri(root)
    if uri is None and config.tracker.name is TrackerName.none:
        return "tracker.name=none; give tracker.uri="
    summary = folder.summary()
    status = summary.status or "interrupted"
    tags, facts = run_tags(run_dir, root, grid), folder.record().get("facts", {})
    writer = MlflowWriter(config, target, run_dir, facts, tags, read_journal(run_dir))
    return writer.close(
        MLFLOW_STATUS.get(status, "KILLED"), {"mth.status": status} | ({"mth.reason": summary.reason} if summary.reason else {})
    )


def _root(run_dir: Path) -> Path:
    """The folder of all runs that a run folder lies in."""
    return next((path for path in run_dir.parents if path.name == "multirun"), run_dir.parent)
