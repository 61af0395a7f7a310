"""From validated cells to running ones: where each goes, frozen inputs, submission, waiting, the list of failures."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path

from mth.config.cells import Cell, compose_cells
from mth.config.choices import TrackerName
from mth.config.identity import identity
from mth.config.user_code import files_of_code
from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import remove_leftovers, write_json
from mth.foundations.locks import hold
from mth.foundations.provenance import code_version, environment, snapshot
from mth.grid import local, slurm
from mth.grid.capacity import place_on_devices
from mth.grid.placement import TO_DO, Place, place_cells, runs_root
from mth.grid.preflight import preflight
from mth.grid.record import Grid, GridCell, asked_to_end, is_grid, launcher_at, log_event, read_grid
from mth.grid.show import Display, state_table
from mth.grid.state import PENDING, CellState, cell_states
from mth.runs.folder import DONE, RunFolder, host_name
from mth.runs.journal import read_journal

SLURM_POLL_S = 3.0
PREPARE_PATIENCE_S = 300.0  # placing a large grid takes seconds
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
    cells = place_on_devices(cells, preflight(cells))
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

    A folder that is a grid already keeps its other cells; the returned grid has only those that were asked for. One command at a time looks
    at the folder and writes to it. Raises UserError if a cell's folder belongs to another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".grid"
    handle = hold(lock, PREPARE_PATIENCE_S)
    require(handle is not None, f"{folder}: another command is still preparing a grid there; wait for it, or give another run_dir=")
    assert handle is not None
    with handle:
        try:
            placed = place_cells(cells, folder, root)
        except UserError:
            if not is_grid(folder):  # nothing is left of a grid that never was
                lock.unlink()
                with suppress(OSError):
                    folder.rmdir()
            raise
        for place in (folder, folder / "code", folder / "base"):
            remove_leftovers(place)
        for cell, entry in zip(cells, placed, strict=True):
            if entry.found in TO_DO:
                Place(entry.found, entry.dir, entry.beginning_dir).prepare(cell.config)
        code = snapshot(folder / "code", {name: path for cell in cells for name, path in files_of_code(cell.config).items()})
        write_json(folder / "environment.json", environment())
        asked = {name for entry in placed for name in (entry.name, entry.identity)}
        kept = [entry for entry in read_grid(folder).cells if not {entry.name, entry.identity} & asked] if is_grid(folder) else []
        grid = Grid(folder, root, code, code_version(), shlex.join(["python", "-m", "mth.train", *sys.argv[1:]]), [*kept, *placed])
        grid.write()
    return replace(grid, cells=placed)


def prepare_stores(cells: Sequence[Cell], root: Path) -> None:
    """Create MLflow stores and experiments before the first job: many processes that create one at once would break it."""
    from mth.runs.mlflow import default_uri, prepare_store

    trackers = [cell.config.tracker for cell in cells if cell.config.tracker.name is TrackerName.mlflow]
    for uri, experiment in sorted({(tracker.uri or default_uri(root), tracker.experiment) for tracker in trackers}):
        try:
            prepare_store(uri, experiment)
        except Exception as error:  # a server that is down raises many types; the journals hold everything until a sync
            print(f"warning: MLflow at {uri} does not answer ({first_line(error, 160)}); the journals keep all metrics", file=sys.stderr)


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
    """Submit to SLURM, or run on this machine. detach: a background process runs the cells of this machine.

    A cell whose folder was deleted gets it again. Raises UserError if the frozen code was deleted, or if cells run on this machine already.
    """
    require(
        not cells or (grid.code / "mth" / "__init__.py").is_file(),
        f"{grid.code} was deleted, and the cells would run today's code; put it back, or type the grid's command again with "
        f"run_dir={os.path.relpath(grid.folder)}, which freezes today's code: {grid.command}",
    )
    cells = [cell for cell in cells if has_folder(grid, cell)]
    slurm_cells, local_cells = ([cell for cell in cells if (cell.launcher["kind"] == "slurm") is wanted] for wanted in (True, False))
    if local_cells and (busy := launcher_at(grid.folder)) is not None:
        names = " ".join(cell.name for cell in local_cells)
        raise UserError(
            f"{grid.folder}: process {busy[0]} on {busy[1]} is starting cells of this grid; once it has ended, run these with: "
            f"python -m mth.grid resume {os.path.relpath(grid.folder)} {names}"
        )
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


def has_folder(grid: Grid, cell: GridCell) -> bool:
    """Whether a cell can run. A deleted folder is made again from the cell's overrides; what cannot run is named on stderr."""
    if RunFolder(cell.dir).exists:
        return True
    try:
        with chdir(grid.cwd if grid.cwd.is_dir() else Path.cwd()):  # relative paths in the overrides start there
            (again,) = compose_cells([cell.overrides])
        require(identity(again.config) == cell.identity, "its overrides now give another configuration")
        Place("new", cell.dir).prepare(again.config)
    except UserError as error:
        print(f"warning: {cell.name} is left out: its folder {cell.dir} was deleted, and cannot be made again ({error})", file=sys.stderr)
        return False
    print(f"{cell.name}: its folder was deleted; it starts anew")
    return True


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
    print("\n".join([state_table(states), *hints(states)]))
    bad = [cell for cell in states if cell.state not in (*DONE, *PENDING)]
    if bad:
        lines = "".join(
            f"\n  {cell.entry.name}: {cell.state}{': ' + cell.reason if cell.reason else ''}\n    log: {log_of(grid, cell)}" for cell in bad
        )
        raise UserError(
            f"{len(bad)} of {len(states)} cells did not finish; python -m mth.grid resume {os.path.relpath(grid.folder)}{lines}"
        )
    return [next((after for _, after, _ in cell.passes.values()), None) for cell in states]


def hints(states: Sequence[CellState]) -> list[str]:
    """Lines about cells that ended without having learned anything, those of equal reasons together."""
    from mth.training.shown import why_nothing_was_learned

    found: dict[str, list[str]] = {}
    for cell in states:
        folder = RunFolder(cell.entry.dir)
        if cell.state in DONE and (hint := why_nothing_was_learned(read_journal(folder.path), folder.config())):
            found.setdefault(hint, []).append(cell.entry.name)
    return [f"hint for {', '.join(names)}: {hint}" for hint, names in found.items()]


def log_of(grid: Grid, cell: CellState) -> Path:
    """The cell's output: of its SLURM job, or of its process here."""
    path = slurm.log_path(grid, cell.job) if cell.job else RunFolder(cell.entry.dir).log_file
    return Path(os.path.relpath(path))


def cancel(grid: Grid) -> str:
    """Stop everything: running cells save at their next step and end, waiting ones leave the queue. Returns what was done.

    Asks each cell once, because a second signal would end it before it has saved.
    """
    states, before = cell_states(grid), asked_to_end(grid.folder)
    at_work = [cell for cell in states if cell.state in PENDING]
    new = [cell for cell in at_work if cell.entry.name not in before]
    running, waiting = ([cell for cell in new if cell.state == state] for state in ("running", "queued"))
    launcher = launcher_at(grid.folder)
    if launcher is not None and launcher[1] != host_name():
        raise UserError(f"{grid.folder}: its launcher runs on {launcher[1]}; cancel it there")
    here = [cell.entry for cell in running if not cell.job] if launcher is None else []
    local.refuse_elsewhere(here)
    log_event(grid.folder, "cancelled", cells=[cell.entry.name for cell in new])
    slurm.cancel([cell.job for cell in running if cell.job], [cell.job for cell in waiting if cell.job])
    if launcher is not None and any(not cell.job for cell in new):
        os.kill(launcher[0], signal.SIGTERM)  # it passes the signal on to its cells
    local.stop(here)
    saving = [cell for cell in at_work if cell.entry.name in before and cell.state == "running"]
    lines = [f"asked {len(running)} running cells to save and end, took {len(waiting)} out of the queue"]
    lines += [f"{cell.entry.name}: asked before, still saving; to end it without saving: {_kill_command(cell)}" for cell in saving]
    return "\n".join(lines)


def _kill_command(cell: CellState) -> str:
    pid = RunFolder(cell.entry.dir).record().get("pid")
    return f"scancel {cell.job}" if cell.job else f"kill -9 {pid} (on {cell.node})"
