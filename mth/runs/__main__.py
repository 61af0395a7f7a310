"""python -m mth.runs: find runs, compare two, and remove what is superseded.

Lists the runs below a folder, newest first: the settings in which they differ, state, steps, pass@1 before and after, age. KEY=VALUE keeps
those with this setting, as one would type it to train: sparsity=99,99.9 task=gsm8k lr=1e-3 mask=last_layer. Several values: any of them.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mth.config.cli import one_line_errors
from mth.foundations.errors import UserError, require

if TYPE_CHECKING:
    from mth.analysis.glance import Glance

STATES = ("finished", "collapsed", "failed", "interrupted", "running", "unfinished")


def list_runs(folder: Path, wanted: Sequence[str], states: Sequence[str], as_csv: bool) -> None:
    from mth.analysis.finding import conditions, find
    from mth.analysis.listing import columns, differing, exact_table, short, table
    from mth.grid.show import table as text

    runs, count = find(folder, conditions(wanted), states)
    require(bool(runs), f"none of the {count} runs below {folder} fits {' '.join([*wanted, *states])}")
    keys = differing(runs)
    if as_csv:
        write_csv(*exact_table(runs, folder, keys))
    else:
        shown, named = columns(runs, keys)
        print(text(*table(runs, folder, shown), left=2 + len(shown)))
        print(f"{len(runs)} of {count} runs" if len(runs) < count else f"{count} {'run' if count == 1 else 'runs'}")
        if named:
            print(f"settings that differ too, see --csv: {', '.join(map(short, named))}")
    tell_problems(runs)


def compare(folder: Path, names: Sequence[str], as_csv: bool) -> None:
    from mth.analysis.glance import glance
    from mth.analysis.listing import compared_curves, compared_results, compared_settings, exact_curves
    from mth.grid.show import table as text

    left, right = (glance(run_at(folder, name), check=False) for name in names)
    if as_csv:
        write_csv(*exact_curves(left, right))
    else:
        print(f"A  {left.path}\nB  {right.path}\n")
        head, rows = compared_settings(left, right)
        print(text(head, rows, left=3) if rows else "the settings are the same")
        for head, rows in (compared_results(left, right), compared_curves(left, right)):
            if rows:
                print(f"\n{text(head, rows, left=1)}")
    tell_problems([left, right])


def clean(folder: Path, wanted: Sequence[str], states: Sequence[str], sure: bool) -> None:
    from mth.analysis.finding import conditions, find
    from mth.analysis.listing import age, name_of
    from mth.grid.cleaning import queued_runs, remove, superseded
    from mth.grid.show import table as text

    every, count = find(folder, [])
    fits = {run.path for run in find(folder, conditions(wanted), states)[0]}
    found = [each for each in superseded(every, queued_runs(folder)) if each.run.path in fits]
    if not found:
        print(f"none of the {count} runs below {folder} is superseded")
        return
    head = ["run", "why", "state", "step", "MiB", "age"]
    rows = [
        [
            name_of(one.run, folder),
            one.why,
            one.run.status,
            f"{one.run.step}/{one.run.steps}",
            f"{one.size / 2**20:.1f}",
            age(one.run.changed),
        ]
        for one in found
    ]
    print(text(head, rows, left=3))
    if not sure:
        print(f"{len(found)} superseded of {count} runs. Nothing is deleted; --yes deletes them.")
        return
    left = [(each, fault) for each in found if (fault := remove(each))]
    gone = sum(each.size for each in found) - sum(each.size for each, _ in left)
    print(f"deleted {len(found) - len(left)} of {count} runs, {gone / 2**20:.1f} MiB; what MLflow has of them stays there")
    for each, fault in left:
        print(f"left alone: {name_of(each.run, folder)}: {fault}", file=sys.stderr)


def run_at(folder: Path, name: str) -> Path:
    """The run folder of this name below a folder, or of this path. Raises UserError if there is none."""
    from mth.runs.folder import RunFolder

    for path in (Path(name), folder / name):
        if RunFolder(path).exists:
            return path
    raise UserError(f"{name} is no run folder; python -m mth.runs {folder} lists what there is")


def tell_problems(runs: "Sequence[Glance]") -> None:
    for run in runs:
        for problem in run.problems:
            print(f"note: {run.path}: {problem}", file=sys.stderr)


def write_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows([head, *rows])


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mth.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="FOLDER | KEY=VALUE", help="folder with runs at any depth (default multirun); settings")
    parser.add_argument("--state", action="append", default=[], choices=STATES, help="runs in this state only; may be given again")
    parser.add_argument("--diff", nargs=2, metavar=("A", "B"), help="compare two runs: settings, results, curves")
    parser.add_argument(
        "--csv", action="store_true", help="print CSV with every differing setting and all digits; with --diff, every metric"
    )
    parser.add_argument("--clean", action="store_true", help="show what is superseded: took no step, or the same run finished elsewhere")
    parser.add_argument("--yes", action="store_true", help="with --clean: delete it")
    arguments = parser.parse_intermixed_args()
    wanted = [each for each in arguments.what if "=" in each and not Path(each).is_dir()]
    folders = [each for each in arguments.what if each not in wanted]
    require(len(folders) < 2, f"{' '.join(folders)}: give one folder")
    require(arguments.clean or not arguments.yes, "--yes goes with --clean")
    require(not (arguments.clean and (arguments.diff or arguments.csv)), "--clean goes with neither --diff nor --csv")
    require(not (arguments.diff and (wanted or arguments.state)), "--diff takes two runs and no settings")
    folder = Path(folders[0] if folders else "multirun")
    if arguments.diff:
        compare(folder, arguments.diff, arguments.csv)
    elif arguments.clean:
        clean(folder, wanted, arguments.state, arguments.yes)
    else:
        list_runs(folder, wanted, arguments.state, arguments.csv)


if __name__ == "__main__":
    main()
