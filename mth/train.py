"""python -m mth.train: train a random sparse ticket of a language model with GRPO on verifiable rewards.

Usage
  python -m mth.train [KEY=VALUE ...]                        one run
  python -m mth.train -m KEY=VALUE,VALUE [...]               a grid: every combination of the comma-separated values
  python -m mth.train --help [SECTION ...]                   all keys, or those of a section, e.g. rollout

Examples
  python -m mth.train                                        the embedded model at 99 % sparsity
  python -m mth.train sparsity=99.9 mask_seed=10 train.steps=50
  python -m mth.train -m sparsity=99,99.9 mask_seed=0,10,42  six runs under multirun/
  python -m mth.train run_dir=multirun/mine                  the same command again continues the run
  python -m mth.train model=qwen2.5-0.5b task=gsm8k          a row of the paper's Table 1 gets its Table 4 column
  python -m mth.train --cfg job sparsity=99.9                print the configuration, run nothing

A number given to a group goes to its value: sparsity=99.9 is sparsity.percent=99.9, lr=1e-4 is lr.value=1e-4, seed=7 is seed.train=7.
A run that is finished is not run again, one that was stopped continues, one with more steps than a finished one starts where that ended.
force=true starts anew.
"""

import os
import shlex
import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mth.config.cli import asks_for_help, hydra_main, one_line_errors
from mth.config.typed_values import quoted
from mth.foundations.errors import require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mth.config.schema import Config
    from mth.grid.placement import Place
    from mth.runs.folder import RunFolder
    from mth.runs.summary import Summary


def report(summary: "Summary", config: "Config", run_dir: Path, root: Path) -> None:
    """Print what a user wants to know at the end: before and after, where it is, how to look at it."""
    from mth.foundations.statistics import plus_minus
    from mth.runs.folder import RunFolder
    from mth.runs.journal import read_journal
    from mth.runs.trackers.look import ways_to_look
    from mth.training.shown import why_nothing_was_learned

    trained = f"{summary.active_parameters:,} of {summary.total_parameters:,} parameters trained"
    print(f"\n{summary.status} after {summary.steps} steps, {trained}")
    if summary.reason:
        print(f"reason: {summary.reason}")
    for task, base in summary.base.items():
        final, change = summary.final[task], summary.change.get(task, {})
        graded = base["pass_at_1"] == base["reward"] and final["pass_at_1"] == final["reward"]  # every reward is 0 or 1
        for key in ("pass_at_1",) if graded else ("pass_at_1", "reward"):
            error = f"{key}_error"
            ends = (plus_minus(each[key], each.get(error)) for each in (base, final))
            gain = plus_minus(final[key] - base[key], change.get(error), "+")
            print(f"{task:14} {key.replace('_at_', '@'):7} base {' -> trained '.join(ends)} ({gain})")
    if hint := why_nothing_was_learned(read_journal(run_dir), config):
        print(f"hint: {hint}")
    print(f"run folder:     {run_dir}")
    if RunFolder(run_dir).samples.is_dir():
        print(f"what it wrote:  python -m mth.samples {os.path.relpath(run_dir)} --changed")
    for title, what in ways_to_look(config, RunFolder(run_dir), root):
        print(f"{title:15} {what}")


def place(config: "Config", run_dir: Path) -> "Place":
    """Check a run and make its folder. run_dir: given by the user, or a new and empty folder."""
    from mth.config.cells import Cell
    from mth.grid.capacity import place_on_devices
    from mth.grid.placement import place_run, runs_root
    from mth.grid.preflight import preflight

    cells = [Cell((), "", config, {})]
    place_on_devices(cells, preflight(cells))
    chosen = place_run(config, run_dir, runs_root())
    if chosen.to_do:
        chosen.prepare(config)
    return chosen


def run(config: "Config", place: "Place") -> None:
    """Train one run, unless it is finished, and print what came out."""
    from mth.foundations.signals import listen, nothing_to_save
    from mth.grid.placement import runs_root
    from mth.runs.folder import RunFolder

    root = runs_root()
    if not place.to_do:
        print(f"finished before, in {place.dir}; force=true runs it again")
        return report(RunFolder(place.dir).summary(), config, place.dir, root)
    if place.found == "continued":
        print(f"continuing the run in {place.dir} (force=true starts anew)")
    elif place.beginning is not None:
        print(f"continuing from {place.beginning}, which is a shorter run of the same configuration (force=true starts anew)")
    from mth.training.loop import train

    requests = listen()
    try:
        summary = train(config, place.dir, root, requests)
    except KeyboardInterrupt:  # the second one
        print(f"\nended at once; {continue_command(place.dir)}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception:
        if place.found == "new":
            remove_failed_start(RunFolder(place.dir), root)
        raise
    finally:
        nothing_to_save()
    report(summary, config, place.dir, root)
    if summary.status == "interrupted":
        print(continue_command(place.dir))
    if requests.received is not None:
        raise SystemExit(128 + requests.received)
    return None


def continue_command(run_dir: Path) -> str:
    """How to go on with a run that was stopped: the command as it was typed, with the run's folder."""
    left_out = ("run_dir=", "force=", "resume=")
    typed = [argument for argument in sys.argv[1:] if not argument.startswith(left_out)]
    return f"continue with:  {shlex.join(['python', '-m', 'mth.train', *typed, quoted('run_dir', os.path.relpath(run_dir))])}"


def remove_failed_start(folder: "RunFolder", root: Path) -> None:
    """Remove what this process left of a new run that failed before its first evaluation was done, so that no report finds it."""
    begun = folder.journal_file.is_file() and folder.journal_file.stat().st_size > 0
    if begun or folder.record().get("pid") != os.getpid():
        return
    ids = (folder.mlflow_file, folder.wandb_file, folder.trackers_file)
    made = (folder.config_file, folder.record_file, folder.summary_file, folder.journal_file, *ids, folder.path / ".lock")
    for file in made:
        file.unlink(missing_ok=True)
    for inner in (folder.samples, folder.checkpoints, folder.gradients):
        remove_empty(inner, root)
    remove_empty(folder.path, root)


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder if it is empty, and the folder of its day if that is empty then. root: of all runs."""
    with suppress(OSError):
        folder.rmdir()
        if folder.parent.parent == root:
            folder.parent.rmdir()


def main(cfg: "DictConfig") -> None:
    from hydra.core.hydra_config import HydraConfig

    from mth.config.recipes import load_run
    from mth.grid.placement import holds_time, new_folder

    config = load_run(cfg, list(HydraConfig.get().overrides.task))
    choice = HydraConfig.get().runtime.choices["hydra/launcher"]
    require(choice == "local" and not config.detach, "hydra/launcher= and detach= are for grids: add -m, also for a grid of one cell")
    for override in HydraConfig.get().overrides.hydra:
        require(not override.startswith("hydra.run."), f"{override}: give the folder of a run with run_dir=")
    assert config.run_dir is not None
    given, config.run_dir = Path(config.run_dir).absolute(), None if holds_time(cfg) else config.run_dir
    with new_folder(given) if config.run_dir is None else nullcontext(given) as run_dir:
        placed = place(config, run_dir)
    run(config, placed)


@one_line_errors
def start(arguments: list[str]) -> None:
    if asks_for_help(arguments):
        from mth.config.help import command_help

        print(command_help(__doc__, [argument for argument in arguments if not argument.startswith("-")]))
        return
    hydra_main(main)


if __name__ == "__main__":
    start(sys.argv[1:])
