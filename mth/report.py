"""python -m mth.report: every table and figure of the paper that the runs at hand allow, in one page.

Reads folders of runs and, where a name is no such folder, the MLflow experiment of that name, and writes report/index.html with everything
inside, each figure as PNG and SVG and each table as CSV and Markdown beside it, what is missing and the command that produces it.
"""

import argparse
import base64
import io
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mth.cli import one_line_errors
from mth.config import require
from mth.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mth.analysis.results import Item
    from mth.analysis.runs import Collection, Run

PAPER = (
    ("table2", "Active parameters and learning rates (Table 2)", "Exact counts at the real shapes; the paper rounds them."),
    (
        "table3",
        "Overlap of random masks (Table 3)",
        "All pairs of the five masks at the real shapes, counted exactly, from seeds alone; per tensor in table3_tensors.csv.",
    ),
    (
        "table5",
        "Optimizer memory (Table 5)",
        "Bytes really allocated at the real shapes. The paper counts two fp32 moments and an int64 index, and 8 bytes per parameter for full "
        "training; ours has int32 indices. values: the fp32 master copy of the active entries; the frozen weights need none.",
    ),
)


def is_folder(source: str) -> bool:
    """Whether a source is a folder of runs, or of a report, and not the name of an MLflow experiment (whatever other folder may have that name)."""
    from mth.analysis.frame import is_frame
    from mth.analysis.runs import run_folders

    folder = Path(source)
    return "/" in source or source == "." or is_frame(folder) or next(run_folders(folder), None) is not None


def read(sources: Sequence[str], uri: str | None) -> "Collection":
    """The runs of folders, reports and MLflow experiments; a run that several of them have counts once."""
    from mth.analysis.frame import is_frame, read_frame
    from mth.analysis.runs import merged, read_folder, read_mlflow
    from mth.tracking import default_uri

    collections = []
    for source in sources:
        if is_folder(source):
            folder = Path(source)
            collections.append(read_frame(folder) if is_frame(folder) else read_folder(folder))
            continue
        require(
            uri is not None or Path("multirun/mlflow.db").is_file(),
            f"{source} is no folder with runs of mth, and there is no multirun/mlflow.db with an experiment of that name",
        )
        collections.append(read_mlflow(source, uri or default_uri(Path("multirun"))))
    return merged(collections)


def settings_of(runs: "list[Run]") -> "list[list[Run]]":
    """Runs that differ only in what the experiments vary, the largest group first."""
    from mth.analysis.needs import setting

    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(setting(run.config), []).append(run)
    return sorted(groups.values(), key=lambda group: -len(group))


def result_sections(collection: "Collection", metric: str, out: Path) -> list[dict[str, Any]]:
    """One section per setting; whatever cannot be made becomes a line that says why and what to run."""
    from mth.analysis.results import Setting, builders

    sections = []
    groups = settings_of(collection.runs)
    for number, runs in enumerate(groups):
        setting = Setting(runs, metric)
        section: dict[str, Any] = {"title": setting.title, "anchor": f"setting{number}", "shown": [], "absent": []}
        prefix = f"{number + 1}_" if len(groups) > 1 else ""
        for name, needed, make in builders(setting):
            try:
                section["shown"] += [write_item(item, out, prefix) for item in make()]
            except UserError as error:
                command = needed.command if needed else ""
                section["absent"].append({"text": f"{name}: {error}.", "command": command})
            except Exception as error:  # one bad run or figure must not take the others with it
                said = str(error).strip().splitlines()
                section["absent"].append(
                    {"text": f"{name}: could not be made ({type(error).__name__}: {said[0] if said else ''})", "command": ""}
                )
        sections.append(section)
    return sections


def paper_section(out: Path) -> dict[str, Any]:
    """Tables 2, 3 and 5 at the real shapes."""
    from tqdm import tqdm

    from mth.analysis import tables
    from mth.analysis.results import Item

    shown = []
    for name, title, caption in tqdm(PAPER, desc="tables at the real shapes", unit="table"):
        made = getattr(tables, f"table_{name.removeprefix('table')}")()
        table, data = (made[0], {f"{name}_tensors": made[1]}) if isinstance(made, tuple) else (made, {})
        shown.append(write_item(Item(name, title, caption, None, table, None, data), out, ""))
    return {"title": "The paper's models: Tables 2, 3 and 5", "anchor": "paper", "shown": shown, "absent": []}


def png(figure: "Figure") -> bytes:
    """A figure as a PNG with a palette of 256 colours: a third of the size of one without."""
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=130)
    with Image.open(whole) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def write_item(item: "Item", out: Path, prefix: str) -> dict[str, Any]:
    """Write the item's files; returns what the page needs of it."""
    name, files, image = f"{prefix}{item.slug}", [], ""
    if item.figure is not None:
        picture = png(item.figure)
        (out / f"{name}.png").write_bytes(picture)
        item.figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        image = base64.b64encode(picture).decode()
        files += [f"{name}.png", f"{name}.svg"]
    if item.table is not None:
        item.table.to_csv(out / f"{name}.csv", index=False)
        (out / f"{name}.md").write_text(markdown(item.table))
        files += [f"{name}.csv", f"{name}.md"]
    for extra, data in item.data.items():
        data.to_csv(out / f"{prefix}{extra}.csv", index=False)
        files.append(f"{prefix}{extra}.csv")
    missing = ""
    if item.need is not None and item.need.missing:
        missing = f"{item.need.missing} of the {len(item.need.cells)} runs of {item.need.experiment} are missing. What is finished is not run again:"
    return {
        "title": item.title,
        "caption": item.caption,
        "image": image,
        "html": "" if item.table is None else html(item.table),
        "missing": missing,
        "command": item.need.command if item.need else "",
        "advice": item.advice,
        "files": files,
    }


def shown(value: Any) -> str:
    """A cell as text: counts with separators, other numbers with six digits at most, nothing for what is absent."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def markdown(table: "pd.DataFrame") -> str:
    """A table in GitHub's Markdown."""
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    rows += [[shown(value).replace("|", "\\|") for value in row] for row in table.astype(object).itertuples(index=False)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def html(table: "pd.DataFrame") -> str:
    text = table.astype(object).map(shown)
    return str(text.to_html(index=False, border=0))


def require_metric(done: "list[Run]", metric: str) -> None:
    """Raise UserError when no run has the metric on any evaluation task."""
    keys = {key.split("/", 2)[2] for run in done for entry in run.entries for key in entry.metrics if key.startswith("eval/")}
    require(metric in keys, f"--metric {metric}: no finished run has it; there is {', '.join(sorted(keys)) or 'no evaluation at all'}")


def report(sources: Sequence[str], out: Path | None, uri: str | None, metric: str, paper_tables: bool) -> Path:
    """Write the report; returns its page. Raises UserError when there is nothing to read, or nothing of the metric."""
    import jinja2
    from omegaconf import OmegaConf

    from mth.analysis.aggregate import run_table, tidy
    from mth.analysis.frame import write_frame
    from mth.config import to_plain
    from mth.paths import PACKAGE
    from mth.provenance import code_version

    collection = read(sources, uri)
    done = [run for run in collection.runs if run.done]
    if not done:
        states = ", ".join(f"{count} {state}" for state, count in Counter(run.status for run in collection.runs).items())
        raise UserError(f"{collection.source} has no finished run ({states}); see python -m mth.grid status, and resume what was stopped")
    require_metric(done, metric)
    out = out or (Path(sources[0]) / "report" if is_folder(sources[0]) else Path(f"report-{sources[0]}"))
    out.mkdir(parents=True, exist_ok=True)
    problems = list(collection.problems)
    problems += [
        f"{run.name}: {run.status}{': ' + run.reason if run.reason else ''}"
        for run in collection.runs
        if run.status not in ("finished", "running")
    ]
    problems += [f"{', '.join(names)}: repeats of a run that is shown" for names in collection.repeats.values()]
    models = sorted({run.config.model.name for run in collection.runs})
    if len(models) > 1:
        problems.insert(
            0, f"Runs of {len(models)} models ({', '.join(models)}): each has its own section, nothing is averaged across them."
        )
    sections = result_sections(collection, metric, out) + ([paper_section(out)] if paper_tables else [])
    table = run_table(collection.runs).drop(columns="identity")
    everything = tidy(collection.runs)
    write_frame(collection.runs, everything, out)
    for task in sorted({task for run in done for task in run.config.eval.tasks or []}):
        by_run = everything[everything["metric"] == f"eval/{task}/{metric}"].sort_values("step").groupby("run", observed=False)["value"]
        table[f"{task} before"], table[f"{task} after"] = by_run.first().to_numpy(), by_run.last().to_numpy()
    table.to_csv(out / "runs.csv", index=False)
    counts = ", ".join(f"{count} {state}" for state, count in Counter(run.status for run in collection.runs).items())
    version = code_version()
    page = jinja2.Environment(autoescape=True).from_string((PACKAGE / "analysis" / "report.html.j2").read_text()).render(
        source=collection.source,
        counts=counts,
        date=time.strftime("%Y-%m-%d %H:%M"),
        version=f"{version['release']}, commit {(version['commit'] or 'unknown')[:12]}{' (changed)' if version['dirty'] else ''}",
        problems=problems,
        sections=sections,
        runs_html=html(table),
        configs=[{"name": r.name, "status": r.status, "commit": r.commit, "text": OmegaConf.to_yaml(OmegaConf.create(to_plain(r.config)))} for r in collection.runs],
    )  # fmt: skip
    (out / "index.html").write_text(page)
    for line in problems:
        print(f"note: {line}", file=sys.stderr)
    for section in sections:
        for absent in section["absent"]:
            print(f"not shown: {absent['text']}{' ' + absent['command'] if absent['command'] else ''}", file=sys.stderr)
    return out / "index.html"


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mth.report", description=__doc__)
    parser.add_argument(
        "source", nargs="+", help="folder with runs at any depth (multirun) or with a report, or the name of an MLflow experiment"
    )
    parser.add_argument("--out", type=Path, help="folder to write (default: report/ in the first folder of runs)")
    parser.add_argument("--tracking-uri", help="MLflow store or server of the experiments (default: multirun/mlflow.db)")
    parser.add_argument(
        "--metric", default="pass_at_1", help="what figures show: the part behind eval/<task>/ (default pass_at_1; reward, ...)"
    )
    parser.add_argument("--skip-paper-tables", action="store_true", help="leave out Tables 2, 3 and 5 at the real shapes (a minute or two)")
    arguments = parser.parse_args()
    page = report(arguments.source, arguments.out, arguments.tracking_uri, arguments.metric, not arguments.skip_paper_tables)
    print(f"report: {page}")


if __name__ == "__main__":
    main()
