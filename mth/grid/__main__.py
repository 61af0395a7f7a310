"""python -m mth.grid: plan a grid before it is launched; watch, resume and cancel it afterwards.

Usage
  python -m mth.grid plan <arguments of python -m mth.train -m>   cells, active parameters, memory, rollouts, what is finished; runs nothing
  python -m mth.grid status <folder>                              a table of the cells, from files and from SLURM while it remembers
  python -m mth.grid watch <folder>                               the same as a progress bar, until all cells have ended
  python -m mth.grid resume <folder> [CELL ...] [hydra.launcher.KEY=VALUE ...]
                                                                  run what is not finished, of these cells or of all; a key changes the
                                                                  launcher, e.g. hydra.launcher.timeout_min=600
  python -m mth.grid cancel <folder>                              running cells save and end, waiting ones leave the queue
  python -m mth.grid sync <folder> [tracker.uri=URI]              send the journals of all runs below the folder to MLflow

<folder> is the grid's, as printed at launch: multirun/<date>/<time>, or the run_dir= that was given.
"""

import sys
from pathlib import Path

from mth.cli import one_line_errors
from mth.config import require


def plan(arguments: list[str]) -> None:
    from mth.cells import check
    from mth.grid.launch import choose, runs_root
    from mth.grid.plan import check_models, plan_table
    from mth.grid.record import TO_DO
    from mth.tracking import read_journal

    cells = check(["-m", *(argument for argument in arguments if argument not in ("-m", "--multirun"))])
    check_models(cells)
    folder = Path(cells[0].config.run_dir or runs_root()).resolve()
    entries = choose(cells, folder, runs_root())
    journals = [read_journal(Path(entry.beginning or entry.dir)) if entry.found in TO_DO else [] for entry in entries]
    print(plan_table(cells, [(entry.found, journal[-1].step if journal else 0) for entry, journal in zip(entries, journals, strict=True)]))


def status(arguments: list[str]) -> None:
    from mth.grid.record import read_grid
    from mth.grid.show import state_table
    from mth.grid.state import cell_states

    grid = read_grid(_folder(arguments, 1))
    print(state_table(cell_states(grid)))


def watch(arguments: list[str]) -> None:
    from mth.grid.launch import wait
    from mth.grid.record import read_grid

    wait(read_grid(_folder(arguments, 1)))
    status(arguments)


def resume(arguments: list[str]) -> None:
    from dataclasses import replace

    from mth.grid.launch import finish, start, to_run
    from mth.grid.record import read_grid
    from mth.launchers import launcher_settings

    grid = read_grid(_folder(arguments, None))
    names = [argument for argument in arguments[1:] if "=" not in argument]
    changes = [argument for argument in arguments[1:] if "=" in argument]
    for name in names:
        require(name in {entry.name for entry in grid.entries}, f"{name} is no cell of this grid; `status` lists them")
    for change in changes:
        require(
            change.startswith("hydra.launcher."), f"{change}: a grid's cells are as they were launched; only hydra.launcher.KEY= can change"
        )
    grid = replace(grid, entries=[entry for entry in grid.entries if not names or entry.name in names])
    entries = to_run(grid)
    for entry in entries:
        entry.launcher = launcher_settings(entry.launcher, [change.removeprefix("hydra.launcher.") for change in changes])
    print(f"{len(entries)} of {len(grid.entries)} cells to run")
    start(grid, entries, detach=False)
    finish(grid)


def cancel(arguments: list[str]) -> None:
    from mth.grid import launch
    from mth.grid.record import read_grid

    print(launch.cancel(read_grid(_folder(arguments, 1))))


def sync(arguments: list[str]) -> None:
    from mth.grid.sync import sync as send

    folder = _folder(arguments, None)
    for argument in arguments[1:]:
        require(argument.startswith("tracker.uri="), f"{argument}: sync takes the grid's folder and tracker.uri=URI")
    send(folder, arguments[-1].removeprefix("tracker.uri=") if len(arguments) > 1 else None)


COMMANDS = {"plan": plan, "status": status, "watch": watch, "resume": resume, "cancel": cancel, "sync": sync}


def _folder(arguments: list[str], count: int | None) -> Path:
    require(bool(arguments) and (count is None or len(arguments) == count), "give the grid's folder; --help shows how")
    return Path(arguments[0]).resolve()


@one_line_errors
def main(arguments: list[str]) -> None:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    require(arguments[0] in COMMANDS, f"{arguments[0]}: no such command; choose one of {', '.join(COMMANDS)}")
    COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
