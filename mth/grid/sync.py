"""Journals to MLflow: what a store or server missed, or all of it into another one."""

from pathlib import Path

from tqdm import tqdm

from mth.config import Store, read_config
from mth.errors import UserError
from mth.files import read_json
from mth.grid.record import is_grid, read_grid
from mth.runs import is_locked, status_of
from mth.tracking import JOURNAL, MLFLOW_STATUS, MlflowWriter, default_uri, read_journal, run_tags


def sync(folder: Path, uri: str | None) -> None:
    """Send every run below `folder`, and those that its grid continues elsewhere. Sending again changes nothing.

    uri: the store; by default that of each run's configuration. Runs at work are left to themselves. Raises UserError when there is no run,
    or listing the runs that could not be sent.
    """
    grid = read_grid(folder) if is_grid(folder) else None
    found = {path.parent for path in folder.rglob(JOURNAL)} | {entry.dir for entry in (grid.entries if grid else []) if entry.dir.is_dir()}
    runs = sorted(path for path in found if (path / JOURNAL).is_file())
    if not runs:
        raise UserError(f"{folder}: no run with a {JOURNAL} below it")
    problems = []
    for run_dir in tqdm(runs, desc="sync", unit="run"):
        if is_locked(run_dir):
            tqdm.write(f"{run_dir}: at work, sends its metrics itself")
        elif problem := send(run_dir, grid.root if grid else _root(run_dir), grid.folder if grid else None, uri):
            problems.append(f"{run_dir}: {problem}")
    if problems:
        raise UserError(f"{len(problems)} of {len(runs)} runs were not sent:\n  " + "\n  ".join(problems))
    print(f"{len(runs)} runs sent")


def send(run_dir: Path, root: Path, grid: Path | None, uri: str | None) -> str | None:
    """Replay one journal; None, or why it did not work."""
    try:
        config = read_config(run_dir / "config.yaml")
    except UserError as error:
        return str(error)
    target = uri or config.tracker.uri or default_uri(root)
    if uri is None and config.tracker.name is Store.none:
        return "tracker.name=none; give tracker.uri="
    status = status_of(run_dir) or "interrupted"
    summary = read_json(run_dir / "summary.json")
    writer = MlflowWriter(
        config, target, run_dir, read_json(run_dir / "run.json").get("facts", {}), run_tags(run_dir, root, grid), read_journal(run_dir)
    )
    ending = {"mth.status": status} | ({"mth.reason": summary["reason"]} if summary.get("reason") else {})
    return writer.close(MLFLOW_STATUS.get(status, "KILLED"), ending)


def _root(run_dir: Path) -> Path:
    """The folder of all runs that a run folder lies in."""
    return next((path for path in run_dir.parents if path.name == "multirun"), run_dir.parent)
