"""python -m mth.report: every table and figure of the paper that the runs at hand allow, in one page.

Reads folders of runs and, where a name is no such folder, the MLflow experiment of that name. Writes report/index.html with everything
inside, each figure as PNG and SVG and each table as CSV and Markdown beside it, what is missing and the command that produces it.
The folder of a single run gets a page of its own: its curves, its settings, and what the model wrote.
"""

import argparse
from pathlib import Path

from mth.config.cli import one_line_errors
from mth.runs.metrics import PASS_AT_1


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mth.report", description=__doc__)
    parser.add_argument(
        "source",
        nargs="+",
        help="folder with runs at any depth (multirun), of one run, or with a report; or the name of an MLflow experiment",
    )
    parser.add_argument("--out", type=Path, help="folder to write (default: report/ in the first folder of runs)")
    parser.add_argument("--tracking-uri", help="MLflow store or server of the experiments (default: multirun/mlflow.db)")
    parser.add_argument(
        "--metric", default=PASS_AT_1, help="what figures show: the part behind eval/<task>/ (default pass_at_1; reward, ...)"
    )
    parser.add_argument("--skip-paper-tables", action="store_true", help="leave out Tables 2, 3 and 5 at the real shapes (a minute or two)")
    arguments = parser.parse_args()
    if is_run(arguments.source):
        from mth.analysis.run_page import run_page

        print(f"page: {run_page(Path(arguments.source[0]), arguments.out, arguments.metric)}")
        return
    from mth.analysis.page import report  # loads pandas, matplotlib and torch, which --help does not need

    page = report(arguments.source, arguments.out, arguments.tracking_uri, arguments.metric, not arguments.skip_paper_tables)
    print(f"report: {page}")


def is_run(sources: list[str]) -> bool:
    """Whether the sources are the folder of one run, which gets a page of its own."""
    from mth.runs.search import run_folders

    return len(sources) == 1 and list(run_folders(Path(sources[0]))) == [Path(sources[0])]


if __name__ == "__main__":
    main()
