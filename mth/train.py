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
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mth.config.cli import asks_for_help, hydra_main, one_line_errors
from mth.foundations.errors import require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from mth.config.schema import Config
    from mth.runs.summary import Summary


def report(summary: "Summary", config: "Config", run_dir: Path, root: Path) -> None:
    """Print what a user wants to know at the end: before and after, where it is, how to look at it."""
    from mth.foundations.statistics import plus_minus
    from mth.runs.folder import RunFolder
    from mth.runs.trackers.look import ways_to_look

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
    print(f"run folder:     {run_dir}")
    if RunFolder(run_dir).samples.is_dir():
        print(f"what it wrote:  python -m mth.samples {os.path.relpath(run_dir)} --changed")
    for title, what in ways_to_look(config, RunFolder(run_dir), root):
        print(f"{title:15} {what}")


def run(config: "Config", run_dir: Path) -> None:
    """Check, place and train one run. run_dir: given by the user, or a new folder."""
    from mth.config.cells import Cell
    from mth.foundations.signals import listen
    from mth.grid.placement import place_run, runs_root
    from mth.grid.preflight import preflight
    from mth.runs.folder import RunFolder

    root = runs_root()
    try:
        preflight([Cell((), "", config, {})])
        place = place_run(config, run_dir, root)
    finally:
        dated = [run_dir.parent] if run_dir.parent.parent == root else []
        for empty in (run_dir, *dated):  # Hydra made them; the run makes its folder itself
            with suppress(OSError):
                empty.rmdir()
    if not place.to_do:
        print(f"finished before, in {place.dir}; force=true runs it again")
        return report(RunFolder(place.dir).summary(), config, place.dir, root)
    if place.found == "continued":
        print(f"continuing the run in {place.dir} (force=true starts anew)")
    elif place.beginning is not None:
        print(f"continuing from {place.beginning}, which is a shorter run of the same configuration (force=true starts anew)")
    place.prepare(config)
    from mth.training.loop import train

    requests = listen()
    report(train(config, place.dir, root, requests), config, place.dir, root)
    if requests.received is not None:
        raise SystemExit(128 + requests.received)
    return None


def main(cfg: "DictConfig") -> None:
    from hydra.core.hydra_config import HydraConfig

    from mth.config.recipes import load_run

    config = load_run(cfg, list(HydraConfig.get().overrides.task))
    choice = HydraConfig.get().runtime.choices["hydra/launcher"]
    require(choice == "local" and not config.detach, "hydra/launcher= and detach= are for grids: add -m, also for a grid of one cell")
    run(config, Path(HydraConfig.get().runtime.output_dir))


@one_line_errors
def start(arguments: list[str]) -> None:
    if asks_for_help(arguments):
        from mth.config.help import command_help

        print(command_help(__doc__, [argument for argument in arguments if not argument.startswith("-")]))
        return
    hydra_main(main)


if __name__ == "__main__":
    start(sys.argv[1:])
