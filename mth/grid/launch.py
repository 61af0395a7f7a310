"""From validated cells to running ones: where each goes, frozen inputs, submission, waiting, the list of failures."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mth.config.cells import Cell
from mth.foundations.errors import UserError, first_line
from mth.foundations.files import write_json
from mth.foundations.provenance import code_version, environment, snapshot
from mth.grid import local, slurm
from mth.grid.placement import TO_DO, Place, place_cells, runs_root
from mth.grid.preflight import preflight
from mth.grid.record import Grid, GridCell, is_grid, launcher_at, log_event, read_grid
from mth.grid.show import Display, state_table
from mth.grid.state import PENDING, CellState, cell_states
from mth.grid.sync import tracked_words
from mth.runs.folder import DONE, RunFolder, host_name

SLURM_POLL_S = 3.0
WORDS = {
    "new": "new",
    "extended": "extend shorter runs",
    "continued": "to be continued",
    "finished": "finished before",
    "busy": "queued or running already",
}


def launch(cells: Sequence[Cell], folder: Path) -> list[float | None]:
    """Launch a grid in `folder` and wait for it, unless detach=true. Returns pass@1 after training on the first task, per cell.

    `placement` says which cells run and where. Raises UserError before anything runs if something is wrong, and at the end if cells failed.
    """
    preflight(cells)
    grid = prepare(cells, folder.resolve(), runs_root())
    prepare_stores(cells, grid.root)
    counts = {found: sum(cell.found == found for cell in grid.cells) for found in WORDS}
    found = ", ".join(f"{count} {WORDS[found]}" for found, count in counts.items() if count)
    print(f"grid {os.path.relpath(grid.folder)}: {len(grid.cells)} cells, {found}")
    start(grid, pending_cells(grid), detach=cells[0].config.detach)
    if cells[0].config.detach:
        return [None] * len(cells)
    return finish(grid)


def prepare(cells: Sequence[Cell], folder: Path, root: Path) -> Grid:
    """Write everything that the cells need: configurations, the frozen code, the grid's record. Nothing runs yet.

    A folder that is a grid already keeps its other cells; the returned grid has only those that were asked for. Raises UserError if a
    cell's folder belongs to another configuration.
    """
    placed = place_cells(cells, folder, root)
    folder.mkdir(parents=True, exist_ok=True)
    for cell, entry in zip(cells, placed, strict=True):
        if entry.found in TO_DO:
            Place(entry.found, entry.dir, entry.beginning_dir).prepare(cell.config)
            RunFolder(entry.dir).write_config(cell.config)
    code = snapshot(folder / "code")
    write_json(folder / "environment.json", environment())
    asked = {name for entry in placed for name in (entry.name, entry.identity)}
    kept = [entry for entry in read_grid(folder).cells if not {entry.name, entry.identity} & asked] if is_grid(folder) else []
    grid = Grid(folder, root, code, code_version(), shlex.join(["python", "-m", "mth.train", *sys.argv[1:]]), [*kept, *placed])
    grid.write()
    return replace(grid, cells=placed)


def prepare_stores(cells: Sequence[Cell], root: Path) -> None:
    """Create MLflow stores and experiments before the first job: many processes that create one at once would break it."""
    from mth.runs.trackers.mlflow_store import default_uri, prepare_store, without_password

    trackers = [cell.config.tracker for cell in cells if "mlflow" in cell.config.tracker.chosen]
    for uri, experiment in sorted({(tracker.uri or default_uri(root), tracker.experiment) for tracker in trackers}):
        try:
            prepare_store(uri, experiment)
        except Exception as error:  # a server that is down raises many types; the journals hold everything until a sync
            line = f"MLflow at {without_password(uri)} does not answer ({first_line(error, 160)}); the journals keep all metrics"
            print(f"warning: {line}", file=sys.stderr)


def pending_cells(grid: Grid) -> list[GridCell]:
    """Cells that are neither finished nor queued nor running; of several that share a folder, the first."""
    seen: set[Path] = set()
    pending = []
    for cell in cell_states(grid):
        if cell.state not in (*DONE, *PENDING) and cell.entry.dir not in seen:
            seen.add(cell.entry.dir)
            pending.append(cell.entry)
    return pending


def start(grid: Grid, cells: list[GridCell], detach: bool) -> None:
    """Submit to SLURM, or run on this machine. detach: a background process runs the cells of this machine."""
    slurm_cells, local_cells = ([cell for cell in cells if (cell.launcher["kind"] == "slurm") is wanted] for wanted in (True, False))
    if slurm_cells:
        slurm.submit(grid, slurm_cells)
        print(f"submitted {len(slurm_cells)} jobs. They do not need this process. {_watch_command(grid)}")
    if local_cells and detach:
        with open(grid.folder / "launcher.log", "ab") as log:
            command = [sys.executable, "-m", "mth.grid", "resume", str(grid.folder), *(cell.name for cell in local_cells)]
            variables = os.environ | local.frozen(grid)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=variables)
        print(f"running {len(local_cells)} cells in the background (process {process.pid}). {_watch_command(grid)}")
    elif local_cells:
        display = Display(grid)
        try:
            local.run(grid, local_cells, display.refresh)
        finally:
            display.close()


def _watch_command(grid: Grid) -> str:
    return f"Watch: python -m mth.grid status {os.path.relpath(grid.folder)}"


def wait(grid: Grid) -> None:
    """Wait until no cell of a SLURM grid is queued or running.

    Looks twice, so that a job between two states does not count as ended. Goes on while SLURM does not answer, as when its controller restarts.
    """
    display = Display(grid, SLURM_POLL_S)
    quiet = 0
    try:
        while quiet < 2:
            states = {cell.state for cell in display.refresh()}
            quiet = 0 if states & set(PENDING) or not (states <= set(DONE) or slurm.answers()) else quiet + 1
            time.sleep(SLURM_POLL_S)
    except KeyboardInterrupt:
        print(f"\nno longer watching; the jobs go on. {_watch_command(grid)}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        display.close()


def finish(grid: Grid) -> list[float | None]:
    """Wait for what still runs and show the table. Returns pass@1 per cell; raises UserError listing every cell that did not finish."""
    if any(cell.launcher["kind"] == "slurm" for cell in grid.cells):
        wait(grid)
    states = cell_states(grid)
    print(f"{state_table(states)}{tracked_words(grid)}")
    bad = [cell for cell in states if cell.state not in (*DONE, *PENDING)]
    if bad:
        lines = "".join(
            f"\n  {cell.entry.name}: {cell.state}{': ' + cell.reason if cell.reason else ''}\n    log: {log_of(grid, cell)}" for cell in bad
        )
        raise UserError(
            f"{len(bad)} of {len(states)} cells did not finish; python -m mth.grid resume {os.path.relpath(grid.folder)}{lines}"
        )
    return [next((after for _, after, _ in cell.passes.values()), None) for cell in states]


def log_of(grid: Grid, cell: CellState) -> Path:
    """The cell's output: of its SLURM job, or of its process here."""
    path = slurm.log_path(grid, cell.job) if cell.job else RunFolder(cell.entry.dir).log_file
    return Path(os.path.relpath(path))


def cancel(grid: Grid) -> str:
    """Stop everything: running cells save at their next step and end, waiting ones leave the queue. Returns one line about it."""
    states = cell_states(grid)
    running, waiting = ([cell for cell in states if cell.state == state] for state in ("running", "queued"))
    launcher = launcher_at(grid.folder)
    if launcher is not None and launcher[1] != host_name():
        raise UserError(f"{grid.folder}: its launcher runs on {launcher[1]}; cancel it there")
    log_event(grid.folder, "cancelled", cells=[cell.entry.name for cell in (*running, *waiting)])
    slurm.cancel([cell.job for cell in running if cell.job], [cell.job for cell in waiting if cell.job])
    if launcher is not None:
        os.kill(launcher[0], signal.SIGTERM)  # it passes the signal on to its cells
    else:
        local.stop([cell.entry for cell in running if not cell.job])
    return f"asked {len(running)} running cells to save and end, took {len(waiting)} out of the queue"
