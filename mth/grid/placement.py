"""Decides where a run goes: a new folder, or one that holds the same run or the beginning of it. Grids and single runs decide alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mth.config.cells import Cell
from mth.config.identity import identity
from mth.config.schema import Config
from mth.foundations.errors import UserError, require
from mth.grid.record import GridCell, is_grid, read_grid
from mth.grid.state import running_elsewhere
from mth.runs.contents import changed, refuse_change
from mth.runs.folder import DONE, RunFolder
from mth.runs.lock import check_same, lock_folder
from mth.runs.search import copy_beginning, find_runs

TO_DO = ("new", "extended", "continued")


@dataclass(frozen=True)
class Place:
    """found: new, extended, continued, finished or busy. dir: the run's folder. beginning: the shorter run that is extended."""

    found: str
    dir: Path
    beginning: Path | None = None

    @property
    def to_do(self) -> bool:
        """Whether there is something to run."""
        return self.found in TO_DO

    def prepare(self, config: Config) -> None:
        """Make the folder of the run of this configuration; give it the beginning that it extends.

        Touches nothing if another process is at work there by now, or has finished the run. Raises UserError if the folder belongs to
        another configuration by now.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        handle, folder = lock_folder(self.dir), RunFolder(self.dir)
        if handle is None:
            return
        with handle:
            if folder.status in DONE:
                return
            if folder.exists:
                check_same(self.dir, config)
            if self.beginning is not None and not any(folder.checkpoints.glob("step_*")):
                copy_beginning(self.beginning, self.dir, config)
            folder.write_config(config)


def runs_root() -> Path:
    """Folder of all runs, whatever grid they belong to."""
    return Path("multirun").resolve()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Within, a new folder that no other process gets: `path`, or with a number behind it.

    At the end it is removed if it is empty, with the folders above it that were made for it.
    """
    folder, number = path, 2
    made = [parent for parent in path.parents if not parent.exists()]
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder, number = path.with_name(f"{path.name}-{number}"), number + 1
        except FileNotFoundError:  # another process has just removed the parent, which was empty
            continue
    try:
        yield folder
    finally:
        for empty in (folder, *made):
            try:
                empty.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break


def holds_time(cfg: DictConfig) -> bool:
    """Whether the `run_dir` of a composed configuration names a new folder each time: as by default, with ${now:...} in it."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return "${now:" in str(plain["run_dir"])


def place(config: Config, new_dir: Path, same: Mapping[str, list[Path]], beginnings: Mapping[str, list[Path]]) -> Place:
    """Where a run goes. new_dir: its folder if no other holds it. same, beginnings: see `find_runs`.

    A finished run is not run again, an unfinished one continues in its folder, and one whose beginning is finished starts where that ended.
    Raises UserError if `new_dir` belongs to another configuration, or if the runs that were found all read other data, weights or tokenizers.
    """
    name = identity(config)
    folders = unchanged(same.get(name, []), config)
    finished = next((path for path in folders if RunFolder(path).status in DONE), None)
    if finished is not None:
        return Place("finished", finished)
    busy = next((path for path in folders if running_elsewhere(path)), None)
    if busy is not None:
        return Place("busy", busy)
    if folders:
        return Place("continued", folders[0])
    if RunFolder(new_dir).exists:
        check_same(new_dir, config)
    shorter = unchanged(beginnings.get(name, []), config)
    return Place("extended", new_dir, shorter[0]) if shorter else Place("new", new_dir)


def unchanged(folders: Sequence[Path], config: Config) -> list[Path]:
    """The folders of runs that read what a run would read now. Raises UserError, naming what changed, if there are folders and all read other."""
    kept = [path for path in folders if changed(path, config) is None]
    if folders and not kept:
        refuse_change(folders[0], config)
    return kept


def place_cells(cells: Sequence[Cell], folder: Path, root: Path) -> list[GridCell]:
    """Where each cell of a grid in `folder` goes. root: folder of all runs. Raises UserError as `place` does."""
    force = cells[0].config.force
    same, beginnings = ({}, {}) if force else find_runs([root, folder], [cell.config for cell in cells])
    taken = {entry.name: entry.identity for entry in read_grid(folder).cells} if is_grid(folder) else {}
    placed = []
    for cell in cells:
        config, name = cell.config, identity(cell.config)
        others = {label for label, owner in taken.items() if owner != name}  # of earlier commands, with the same number, level and seed
        label = free_name(cell.name, others.__contains__)
        new_dir = folder / (free_name(label, lambda label: (folder / label).exists()) if force else label)
        chosen = place(config, new_dir, same, beginnings)
        beginning, tasks = str(chosen.beginning or ""), list(config.eval.tasks or [])
        placed.append(
            GridCell(label, chosen.dir, list(cell.overrides), name, cell.launcher, chosen.found, config.train.steps, tasks, beginning)
        )
    return placed


def place_run(config: Config, run_dir: Path, root: Path) -> Place:
    """Where a single run goes. run_dir: given by the user, or a new one under `root`. A given folder that holds a run decides alone.

    Raises UserError as `place` does, if the run is at work already, and for resume=true if nothing is there to be continued.
    """
    if config.force:
        chosen = Place("new", run_dir.with_name(free_name(run_dir.name, lambda name: RunFolder(run_dir.with_name(name)).exists)))
    elif RunFolder(run_dir).exists:
        check_same(run_dir, config)
        chosen = place(config, run_dir, {identity(config): [run_dir]}, {})
    else:
        chosen = place(config, run_dir, *find_runs([root], [config]))
    if chosen.found == "busy":
        raise UserError(f"this run is at work in {chosen.dir}; wait for it, or give force=true to run it once more")
    require(
        not config.resume or chosen.found == "continued",
        f"resume=true: no unfinished run with this configuration under {root}; give run_dir=<its folder>, or leave resume out",
    )
    return chosen


def free_name(name: str, taken: Callable[[str], bool]) -> str:
    """`name`, with a number behind it if it is taken."""
    number, free = 2, name
    while taken(free):
        number, free = number + 1, f"{name}-{number}"
    return free
