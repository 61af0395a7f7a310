"""python -m mth.grid: plan a grid before it is launched; watch, resume and cancel it afterwards.

Usage
  python -m mth.grid plan <arguments of python -m mth.train -m>   cells, active parameters, memory, rollouts, what is finished; runs nothing.
                                                                  gpu_memory_gib=80: memory on a GPU of that size, wherever it is planned
  python -m mth.grid status <folder> [--watch]                    a table of the cells, from files and from SLURM while it remembers;
                                                                  --watch redraws it until all cells have ended
  python -m mth.grid watch <folder>                               the same as a progress bar, until all cells have ended
  python -m mth.grid resume <folder> [CELL ...] [hydra.launcher.KEY=VALUE ...]
                                                                  run what is not finished, of these cells or of all; a key changes the
                                                                  launcher, e.g. hydra.launcher.timeout_min=600
  python -m mth.grid cancel <folder>                              running cells save and end, waiting ones leave the queue
  python -m mth.grid sync <folder> [tracker.uri=URI]              send the journals of all runs below the folder to their trackers,
                                                                  or to this MLflow store

<folder> is the grid's, as printed at launch: multirun/<date>/<time>, or the run_dir= that was given.
Settings of the launcher: python -m mth.grid --help hydra.launcher
"""

import sys
from pathlib import Path

from mth.config.cli import asks_for_help, one_line_errors
from mth.foundations.errors import require
from mth.foundations.output import prepare_output


def plan(arguments: list[str]) -> None:
    from mth.config.cells import cells_of
    from mth.grid.placement import place_cells, runs_root
    from mth.grid.plan import plan_table
    from mth.grid.preflight import preflight

    card = None
    for given in [argument for argument in arguments if argument.startswith("gpu_memory_gib=")]:
        text = given.partition("=")[2]
        require(
            text.replace(".", "", 1).isdigit() and float(text) > 0, f"{given}: give the memory of one GPU in GiB, e.g. gpu_memory_gib=80"
        )
        card = int(float(text) * 2**30)
    cells = cells_of(["-m", *(argument for argument in arguments if not argument.startswith("gpu_memory_gib="))])
    models = preflight(cells, elsewhere=card is not None)
    folder = Path(cells[0].config.run_dir or runs_root()).resolve()
    print(plan_table(cells, place_cells(cells, folder, runs_root()), models, card))


def status(arguments: list[str]) -> None:
    from mth.grid.record import read_grid
    from mth.grid.show import WATCH_EVERY_S, state_table, status_frame
    from mth.grid.state import cell_states
    from mth.grid.sync import tracked_words

    others = [argument for argument in arguments if argument != "--watch"]
    grid = read_grid(_folder(others, 1))
    if others == arguments:
        print(f"{state_table(cell_states(grid))}{tracked_words(grid)}")
        return
    from mth.foundations.screen import redraw

    redraw(lambda width, height: status_frame(grid, height), WATCH_EVERY_S)


def watch(arguments: list[str]) -> None:
    from mth.grid.launch import wait
    from mth.grid.record import read_grid

    wait(read_grid(_folder(arguments, 1)))
    status(arguments)


def resume(arguments: list[str]) -> None:
    from dataclasses import replace

    from mth.config.launchers import launcher_settings
    from mth.config.stored import literal
    from mth.grid.launch import finish, pending_cells, start
    from mth.grid.record import read_grid

    prepare_output()
    grid = read_grid(_folder(arguments, None))
    names = [argument for argument in arguments[1:] if "=" not in argument]
    changes = [argument for argument in arguments[1:] if "=" in argument]
    for name in names:
        require(name in {cell.name for cell in grid.cells}, f"{name} is no cell of this grid; `status` lists them")
    for change in changes:
        require(
            change.startswith("hydra.launcher."), f"{change}: a grid's cells are as they were launched; only hydra.launcher.KEY= can change"
        )
    grid = replace(grid, cells=[cell for cell in grid.cells if not names or cell.name in names])
    pending = pending_cells(grid)
    for cell in pending:
        settings = launcher_settings(literal(cell.launcher), [change.removeprefix("hydra.launcher.") for change in changes])
        cell.launcher = literal(settings, mark="")
    print(f"{len(pending)} of {len(grid.cells)} cells to run")
    start(grid, pending, detach=False)
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
    if not arguments or asks_for_help(arguments):
        from mth.config.help import launcher_help

        print(__doc__ if "hydra.launcher" not in arguments else launcher_help())
        return
    require(arguments[0] in COMMANDS, f"{arguments[0]}: no such command; choose one of {', '.join(COMMANDS)}")
    COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
