"""From validated cells to running ones: what is new, frozen inputs, submission, waiting, the list of failures."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from mth.cells import Cell
from mth.config import Store, identity, to_plain
from mth.errors import UserError
from mth.files import write_json, write_text
from mth.grid import local, slurm
from mth.grid.plan import check_models
from mth.grid.record import TO_DO, Entry, Grid, is_grid, launcher_at, log_event, read_grid
from mth.grid.show import Display, state_table
from mth.grid.state import PENDING, CellState, cell_states, elsewhere
from mth.provenance import code_version, environment, snapshot
from mth.runs import DONE, check_same, host, known_runs, start_from, status_of

SLURM_POLL_S = 3.0


def runs_root() -> Path:
    """Folder of all runs, whatever grid they belong to."""
    return Path("multirun").resolve()


def launch(cells: Sequence[Cell], folder: Path) -> list[float | None]:
    """Launch a grid in `folder` and wait for it, unless detach=true. Returns pass@1 after training on the first task, per cell.

    Cells with the identity of a finished run are not run again, unfinished ones are continued in their folder, and a cell of which
    a finished run is the beginning starts where that one ended, wherever they are under multirun/. Raises UserError before anything runs
    when something is wrong, and at the end when cells have failed.
    """
    check_models(cells)
    grid = prepare(cells, folder.resolve(), runs_root())
    prepare_stores(cells, grid.root)
    counts = {found: sum(entry.found == found for entry in grid.entries) for found in ("new", "extended", "continued", "finished", "busy")}
    words = {
        "new": "new",
        "extended": "extend shorter runs",
        "continued": "to be continued",
        "finished": "finished before",
        "busy": "queued or running already",
    }
    print(
        f"grid {os.path.relpath(grid.folder)}: {len(grid.entries)} cells, " + ", ".join(f"{n} {words[f]}" for f, n in counts.items() if n)
    )
    start(grid, to_run(grid), detach=cells[0].config.detach)
    if cells[0].config.detach:
        return [None] * len(cells)
    return finish(grid)


def prepare(cells: Sequence[Cell], folder: Path, root: Path) -> Grid:
    """Write everything that the cells need: configurations, the frozen code, the grid's record. Nothing runs yet.

    A folder that is a grid already keeps its other cells; what is returned has only those that were asked for. Raises UserError when a
    cell's folder belongs to another configuration.
    """
    chosen = choose(cells, folder, root)
    folder.mkdir(parents=True, exist_ok=True)
    for cell, entry in zip(cells, chosen, strict=True):
        if entry.found in TO_DO:
            entry.dir.mkdir(parents=True, exist_ok=True)
            if entry.found == "extended":
                start_from(Path(entry.beginning), entry.dir)
            write_text(entry.dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(to_plain(cell.config))))
    code = snapshot(folder / "code")
    write_json(folder / "environment.json", environment())
    asked = {name for entry in chosen for name in (entry.name, entry.identity)}
    kept = [entry for entry in read_grid(folder).entries if not {entry.name, entry.identity} & asked] if is_grid(folder) else []
    grid = Grid(folder, root, code, code_version(), shlex.join(["python", "-m", "mth.train", *sys.argv[1:]]), [*kept, *chosen])
    grid.write()
    return replace(grid, entries=chosen)


def choose(cells: Sequence[Cell], folder: Path, root: Path) -> list[Entry]:
    """Where each cell runs, and what is there already. Raises UserError when its folder belongs to another configuration."""
    known, beginnings = ({}, {}) if cells[0].config.force else known_runs([root, folder], [cell.config for cell in cells])
    taken = {entry.name: entry.identity for entry in read_grid(folder).entries} if is_grid(folder) else {}
    entries: list[Entry] = []
    for cell in cells:
        name = identity(cell.config)
        others = {label for label, owner in taken.items() if owner != name}  # of earlier commands, with the same number, level and seed
        label = _free(cell.name, others.__contains__)
        there = known.get(name, [])
        finished = next((path for path in there if status_of(path) in DONE), None)
        if finished is not None:
            found, place = "finished", finished
        elif there:
            busy = next((path for path in there if elsewhere(path)), None)
            found, place = ("busy", busy) if busy is not None else ("continued", there[0])
        else:
            found = "extended" if name in beginnings else "new"
            place = folder / (_free(label, lambda label: (folder / label).exists()) if cells[0].config.force else label)
            if (place / "config.yaml").is_file():
                check_same(place, cell.config)
        steps, tasks = cell.config.train.steps, list(cell.config.eval.tasks or [])
        beginning = str(beginnings[name]) if found == "extended" else ""
        entries.append(Entry(label, place, list(cell.overrides), name, cell.launcher, found, steps, tasks, beginning))
    return entries


def _free(name: str, taken: Callable[[str], bool]) -> str:
    """`name`, or with a number behind it when it is taken."""
    number, free = 2, name
    while taken(free):
        number, free = number + 1, f"{name}-{number}"
    return free


def prepare_stores(cells: Sequence[Cell], root: Path) -> None:
    """Create MLflow stores and experiments before the first job: many processes that create one at once would break it."""
    from mth.tracking import default_uri, prepare_store

    trackers = {
        (c.config.tracker.uri or default_uri(root), c.config.tracker.experiment) for c in cells if c.config.tracker.name is Store.mlflow
    }
    for uri, experiment in sorted(trackers):
        try:
            prepare_store(uri, experiment)
        except Exception as error:  # whatever a server that is down raises: the journals hold everything until a sync
            said = str(error).strip().splitlines()
            print(
                f"warning: MLflow at {uri} does not answer ({said[0][:160] if said else type(error).__name__}); the journals keep all metrics",
                file=sys.stderr,
            )


def to_run(grid: Grid) -> list[Entry]:
    """Cells that are neither finished nor queued nor running."""
    twins: set[Path] = set()
    entries = []
    for cell in cell_states(grid):
        if cell.state not in (*DONE, *PENDING) and cell.entry.dir not in twins:
            twins.add(cell.entry.dir)
            entries.append(cell.entry)
    return entries


def start(grid: Grid, entries: list[Entry], detach: bool) -> None:
    """Submit to SLURM, or run on this machine; with detach a process in the background does the latter."""
    there, here = ([entry for entry in entries if (entry.launcher["kind"] == "slurm") is is_slurm] for is_slurm in (True, False))
    if there:
        slurm.submit(grid, there)
        print(f"submitted {len(there)} jobs. They do not need this process. {_commands(grid)}")
    if here and detach:
        with open(grid.folder / "launcher.log", "ab") as log:
            command = [sys.executable, "-m", "mth.grid", "resume", str(grid.folder), *(entry.name for entry in here)]
            environment = os.environ | local.frozen(grid)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment)
        print(f"running {len(here)} cells in the background (process {process.pid}). {_commands(grid)}")
    elif here:
        display = Display(grid)
        try:
            local.run(grid, here, display.refresh)
        finally:
            display.close()


def _commands(grid: Grid) -> str:
    return f"Watch: python -m mth.grid status {os.path.relpath(grid.folder)}"


def wait(grid: Grid) -> None:
    """Until no cell of a SLURM grid is queued or running. Looks twice, so that a job between two states is not taken for ended, and goes on
    while SLURM does not answer, as when its controller is started again.
    """
    display = Display(grid, SLURM_POLL_S)
    quiet = 0
    try:
        while quiet < 2:
            states = {cell.state for cell in display.refresh()}
            quiet = 0 if states & set(PENDING) or not (states <= set(DONE) or slurm.answers()) else quiet + 1
            time.sleep(SLURM_POLL_S)
    except KeyboardInterrupt:
        print(f"\nno longer watching; the jobs go on. {_commands(grid)}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        display.close()


def finish(grid: Grid) -> list[float | None]:
    """Wait for what still runs, show the table, and raise UserError listing every cell that did not finish."""
    if any(entry.launcher["kind"] == "slurm" for entry in grid.entries):
        wait(grid)
    states = cell_states(grid)
    print(state_table(states))
    bad = [cell for cell in states if cell.state not in (*DONE, *PENDING)]
    if bad:
        lines = "".join(
            f"\n  {cell.entry.name}: {cell.state}{': ' + cell.reason if cell.reason else ''}\n    log: {log_of(grid, cell)}" for cell in bad
        )
        raise UserError(
            f"{len(bad)} of {len(states)} cells did not finish; python -m mth.grid resume {os.path.relpath(grid.folder)}{lines}"
        )
    return [next((after for _, after in cell.passes.values()), None) for cell in states]


def log_of(grid: Grid, cell: CellState) -> Path:
    """The cell's output: of its SLURM job, or of its process here."""
    path = slurm.log_path(grid, cell.job) if cell.job else local.log_path(cell.entry)
    return Path(os.path.relpath(path))


def cancel(grid: Grid) -> str:
    """Stop everything: running cells save at their next step boundary and end, waiting ones leave the queue. Returns one line."""
    states = cell_states(grid)
    running, waiting = ([cell for cell in states if cell.state == state] for state in ("running", "queued"))
    launcher = launcher_at(grid.folder)
    if launcher is not None and launcher[1] != host():
        raise UserError(f"{grid.folder}: its launcher runs on {launcher[1]}; cancel it there")
    log_event(grid.folder, "cancelled", cells=[cell.entry.name for cell in (*running, *waiting)])
    slurm.cancel([cell.job for cell in running if cell.job], [cell.job for cell in waiting if cell.job])
    if launcher is not None:
        os.kill(launcher[0], signal.SIGTERM)  # it passes the signal on to its cells
    else:
        local.stop([cell.entry for cell in running if not cell.job])
    return f"asked {len(running)} running cells to save and end, took {len(waiting)} out of the queue"
