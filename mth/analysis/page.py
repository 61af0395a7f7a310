"""The report: reads runs, makes every figure and table that they allow, and writes one page with all of it."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from mth.analysis.aggregate import run_table, tidy_frame
from mth.analysis.answers import RULE, answers
from mth.analysis.collection import Collection, Run
from mth.analysis.errors import error
from mth.analysis.figures import figures
from mth.analysis.figures.base import FigureSpec, Item, Setting, metric_name
from mth.analysis.frame import write_frame
from mth.analysis.levels import levels
from mth.analysis.matrix import matrices
from mth.analysis.needs import TRAIN_SEED, VARIED, setting_key
from mth.analysis.output import result_text, unbroken, write_item
from mth.analysis.run_rows import curves_of, run_table_of
from mth.analysis.settings import write_settings
from mth.analysis.sources import is_folder, read_sources
from mth.analysis.tables import PAPER_TABLES
from mth.config.identity import identity_keys
from mth.config.stored import flat, to_yaml
from mth.foundations.errors import UserError, first_line, require
from mth.foundations.paths import PACKAGE
from mth.foundations.progress import Bar
from mth.foundations.provenance import code_version
from mth.runs.metrics import PASS_AT_1, eval_metric

TEMPLATES = PACKAGE / "analysis" / "web"


def report(
    sources: Sequence[str], out: Path | None = None, uri: str | None = None, metric: str = PASS_AT_1, paper_tables: bool = True
) -> Path:
    """Write a report; returns the path of its page.

    sources: folders and MLflow experiments, as in `read_sources`. out: folder to write; None for `report` in the first folder of runs.
    metric: what figures show, the part behind eval/<task>/. paper_tables: add Tables 2, 3 and 5 at the real shapes.
    Raises UserError if there is no finished run, or none that has the metric.
    """
    collection = read_sources(sources, uri)
    done = [run for run in collection.runs if run.done]
    require(
        bool(done),
        f"{collection.source} has no finished run ({_status_counts(collection.runs)}); see python -m mth.grid status, and resume what was stopped",
    )
    _require_metric(done, metric)
    out = out or (Path(sources[0]) / "report" if is_folder(sources[0]) else Path(f"report-{sources[0]}"))
    out.mkdir(parents=True, exist_ok=True)
    settings = settings_of(collection.runs, metric)
    sections = result_sections(settings, out) + across_sections(settings, out) + ([paper_section(out)] if paper_tables else [])
    write_settings(settings, out)
    tidy = tidy_frame(collection.runs)
    write_frame(collection.runs, tidy, out)
    runs_with_results(collection.runs, tidy, metric).to_csv(out / "runs.csv", index=False)
    page = out / "index.html"
    page.write_text(render(collection, settings, sections, out))
    for line in problems_of(collection):
        print(f"note: {line}", file=sys.stderr)
    for section in sections:
        for gap in section["missing"]:
            if gap["title"] == "":
                print(f"not shown: {gap['text']}{' ' + gap['command'] if gap['command'] else ''}", file=sys.stderr)
    return page


def _status_counts(runs: Iterable[Run]) -> str:
    return ", ".join(f"{count} {status}" for status, count in Counter(run.status for run in runs).items())


def _require_metric(done: Sequence[Run], metric: str) -> None:
    """Raise UserError if no run has the metric on any evaluated task."""
    keys = {key.split("/", 2)[2] for run in done for entry in run.entries for key in entry.metrics if key.startswith("eval/")}
    require(metric in keys, f"--metric {metric}: no finished run has it; there is {', '.join(sorted(keys)) or 'no evaluation at all'}")


def problems_of(collection: Collection) -> list[str]:
    """One line for everything that a reader must know: several models, unreadable and unfinished runs, repeats."""
    problems = list(collection.problems)
    not_finished = [run for run in collection.runs if run.status not in ("finished", "running")]
    problems += [f"{run.name}: {run.status}{': ' + run.reason if run.reason else ''}" for run in not_finished]
    problems += [f"{', '.join(names)}: repeats of a run that is shown" for names in collection.repeats.values()]
    models = sorted({run.config.model.name for run in collection.runs})
    if len(models) > 1:
        line = f"Runs of {len(models)} models ({', '.join(models)}): each has its own section, nothing is averaged across them."
        problems.insert(0, line)
    return problems


def settings_of(runs: Sequence[Run], metric: str) -> list[Setting]:
    """Groups runs that differ only in what the experiments vary; the largest group comes first. No two settings have the same title."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(setting_key(run.config), []).append(run)
    settings = [Setting(group, metric) for group in sorted(groups.values(), key=lambda group: -len(group))]
    alike: dict[str, list[Setting]] = {}
    for setting in settings:
        alike.setdefault(setting.title, []).append(setting)
    return [replace(setting, note=_difference(setting, alike[setting.title])) for setting in settings]


def _difference(setting: Setting, others: Sequence[Setting]) -> str:
    """The settings of `setting` that differ among `others`, which it is one of; "" if it is the only one."""
    keys = [flat(identity_keys(each.config)) for each in others]
    own = flat(identity_keys(setting.config))
    names = sorted({name for each in keys for name in each if name != TRAIN_SEED and name.split(".")[0] not in VARIED})
    return ", ".join(f"{name}={own.get(name)}" for name in names if len({str(each.get(name)) for each in keys}) > 1)


def result_sections(settings: Sequence[Setting], out: Path) -> list[dict[str, Any]]:
    """One section per setting, as the template needs it; writes the files of its figures.

    answers: sentences with the anchor of a figure. shown: figures. missing: texts with commands.
    """
    sections = []
    for number, setting in enumerate(settings):
        prefix = f"{number + 1}_" if len(settings) > 1 else ""
        section: dict[str, Any] = {"title": setting.title, "anchor": f"setting{number}", "shown": [], "missing": []}
        for figure in figures():
            shown, absent = figure_parts(figure, setting, out, prefix)
            section["shown"] += shown
            section["missing"] += [gap for item in shown for gap in item["gaps"]] + absent
        section["missing"] = list({(gap["text"], gap["command"]): gap for gap in section["missing"]}.values())  # figures share experiments
        there = [item["slug"] for item in section["shown"]]
        section["answers"] = [
            {"text": each.text, "anchor": next((f"setting{number}-{name}" for name in each.figures if name in there), "")}
            for each in answers(levels(setting), metric_name(setting.metric))
        ]
        sections.append(section)
    return sections


def figure_parts(figure: FigureSpec, setting: Setting, out: Path, prefix: str) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What the page shows of a figure, or else why there is nothing and the command to run. No error of one figure stops the others."""
    name, command = figure.experiment(setting.config) or figure.name, ""
    try:
        needed = figure.need(setting)
        command = needed.command
        return [write_item(item, out, prefix) for item in figure.make(setting, needed)], []
    except UserError as error:
        return [], [{"title": "", "text": f"{name}: {error}.", "command": command}]
    except Exception as error:
        text = f"{name}: could not be made ({type(error).__name__}: {first_line(error)})"
        return [], [{"title": "", "text": text, "command": ""}]


def across_sections(settings: Sequence[Setting], out: Path) -> list[dict[str, Any]]:
    """The section with what no single setting shows, if there is any; writes its files."""
    shown = [write_item(item, out) for item in matrices(settings)]
    return [{"title": "Across tasks", "anchor": "across", "shown": shown, "missing": [], "answers": []}] if shown else []


def paper_section(out: Path) -> dict[str, Any]:
    """The section with Tables 2, 3 and 5 at the real shapes; writes their files."""
    shown = []
    for each in Bar(PAPER_TABLES, desc="tables at the real shapes", unit="tables"):
        table, tensors = each.make()
        data = {} if tensors is None else {f"{each.slug}_tensors": tensors}
        shown.append(write_item(Item(each.slug, each.title, each.caption, table=table, data=data), out))
    return {"title": "The paper's models: Tables 2, 3 and 5", "anchor": "paper", "shown": shown, "missing": [], "answers": []}


def runs_with_results(runs: Sequence[Run], tidy: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`run_table` without identities, with the metric before and after training on each task, and the standard error over prompts after.

    tidy: `tidy_frame` of the runs.
    """
    table = run_table(runs).drop(columns="identity")
    for task in sorted({task for run in runs if run.done for task in run.config.eval.tasks or []}):
        by_run = tidy[tidy["metric"] == eval_metric(task, metric)].sort_values("step").groupby("run", observed=False)["value"]
        table[f"{task} before"], table[f"{task} after"] = by_run.first().to_numpy(), by_run.last().to_numpy()
        table[f"{task} error"] = [error([run], eval_metric(task, metric)) for run in runs]
    return table


def render(collection: Collection, settings: Sequence[Setting], sections: list[dict[str, Any]], out: Path) -> str:
    """The page. sections: what `result_sections` returns, and more of the kind. out: the folder of the page."""
    version = code_version()
    runs = [run for setting in settings for run in setting.runs]
    configs = [{"name": run.name, "status": run.status, "commit": run.commit, "text": to_yaml(run.config)} for run in runs]
    metric, problems = settings[0].metric, problems_of(collection)
    environment = jinja2.Environment(autoescape=True)
    environment.filters |= {"result": result_text, "unbroken": unbroken}
    template = environment.from_string((TEMPLATES / "report.html.j2").read_text())
    return template.render(
        source=collection.source,
        counts=_status_counts(collection.runs),
        date=time.strftime("%Y-%m-%d %H:%M"),
        version=f"{version['release']}, commit {(version['commit'] or 'unknown')[:12]}{' (changed)' if version['dirty'] else ''}",
        metric=metric_name(metric),
        rule=RULE,
        problems=problems,
        gaps=bool(problems) or any(section["missing"] for section in sections),
        settings=len(settings),
        sections=sections,
        table=run_table_of(settings, metric, out),
        curves=curves_of(settings, metric),
        configs=configs,
        css=(TEMPLATES / "report.css").read_text(),
        script=(TEMPLATES / "report.js").read_text(),
    )
