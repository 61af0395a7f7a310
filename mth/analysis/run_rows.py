"""What the report's page says of single runs: a row of its table, and the curves that its script draws."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from mth.analysis.aggregate import CONFIG_COLUMNS, series
from mth.analysis.collection import Run
from mth.analysis.errors import entry_error, error
from mth.analysis.figures.base import Setting
from mth.analysis.levels import distinct
from mth.analysis.rates import at_best_rates
from mth.config.identity import identity_keys
from mth.config.stored import flat, to_plain
from mth.runs.folder import RunFolder
from mth.runs.metrics import REWARD, eval_metric

MAX_POINTS = 200  # of a curve on the page
MAX_TEXT = 40  # characters of a setting's value in the curves' list
SETTING, MASK = "setting", "mask in words"


def run_table_of(settings: Sequence[Setting], metric: str, out: Path) -> dict[str, Any]:
    """The table of runs, as the template needs it: `tasks`, `columns` (settings that differ), `same` (those that do not), `rows`.

    Each row has `name`, `href` ("" without a page of its own), `status`, `reason`, `best` (whether it has its level's best learning rate),
    `results` (mean and error of each task) and `values` (of each column). out: folder of the report, for the links.
    """
    runs = [run for setting in settings for run in setting.runs]
    tasks = list(dict.fromkeys(task for setting in settings for task in setting.tasks))
    titles = short_titles(settings)
    short = {id(run): _short_settings(run) for run in runs}
    columns = [name for name in CONFIG_COLUMNS if len({short[id(run)][name] for run in runs}) > 1]
    first = short[id(runs[0])]
    same = {name: first[name] for name in CONFIG_COLUMNS if name not in columns and first[name] is not None}
    rows = []
    for setting, title in zip(settings, titles, strict=True):
        best = best_of(setting.runs)
        for run in setting.runs:
            values = [short[id(run)][name] for name in columns] + [run.entries[-1].step if run.entries else 0]
            row = {"name": run.name, "href": page_link(run, out), "status": run.status, "reason": run.reason, "best": id(run) in best}
            row |= {"setting": title, "results": [_result(run, eval_metric(task, metric)) for task in tasks]}
            rows.append(row | {"values": [_text(value) for value in values]})
    return {"tasks": tasks, "columns": [*columns, "steps"], "same": same, "rows": rows, "settings": len(settings)}


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def short_titles(settings: Sequence[Setting]) -> list[str]:
    """A title for each setting: its model and task if that tells them apart, else the whole title."""
    short = [f"{setting.config.model.name} on {setting.config.task.name}" for setting in settings]
    return short if len(set(short)) == len(short) else [setting.title for setting in settings]


def page_link(run: Run, out: Path) -> str:
    """The page of a run relative to the report's folder; "" if it has none."""
    page = None if run.path is None else RunFolder(run.path).page_file
    return quote(os.path.relpath(page, out)) if page is not None and page.is_file() else ""


def best_of(runs: Sequence[Run]) -> set[int]:
    """Ids of the runs that have the best learning rate of their mask and sparsity."""
    by_mask: dict[str, list[Run]] = {}
    for run in distinct(runs):
        if run.done:
            by_mask.setdefault(run.mask_name, []).append(run)
    return {id(run) for tried in by_mask.values() for run in at_best_rates(tried)}


def _short_settings(run: Run) -> dict[str, Any]:
    values = flat(to_plain(run.config))
    return {name: values[key] for name, key in CONFIG_COLUMNS.items()}


def _result(run: Run, key: str) -> tuple[float, float] | None:
    values = series(run, key)
    return (float(values.iloc[-1]), error([run], key)) if len(values) else None


def curves_of(settings: Sequence[Setting], metric: str) -> dict[str, Any]:
    """What the script that draws learning curves needs, as JSON: `metrics`, `keys` to group by, keys that are the `same` in all runs, and `runs`
    in the order of the table.

    Each run has `values` (of each key, as text), `collapsed`, `curves` (metric -> [steps, values]), and `errors`: standard errors over
    prompts in the same form, or null.
    """
    runs = [run for setting in settings for run in setting.runs]
    own = [_grouping_values(title, run) for setting, title in zip(settings, short_titles(settings), strict=True) for run in setting.runs]
    names = list(dict.fromkeys(key for values in own for key in values))
    keys = [key for key in names if len({values.get(key) for values in own}) > 1 or key == MASK]
    tasks = list(dict.fromkeys(task for setting in settings for task in setting.tasks))
    metrics = [*(eval_metric(task, metric) for task in tasks), REWARD]
    shown = {name: _shown_steps([series(run, name) for run in runs]) for name in metrics}
    lines = []
    for run, values in zip(runs, own, strict=True):
        curves = {name: curve for name in metrics if (curve := _curve(series(run, name), shown[name])) is not None}
        errors = {name: _curve(error_series(run, name), shown[name]) for name in curves if name != REWARD}
        lines.append({"values": [values.get(key, "") for key in keys], "collapsed": run.collapsed, "curves": curves, "errors": errors})
    same = {key: value for key, value in own[0].items() if key not in keys}
    return {"metrics": [name for name in metrics if shown[name]], "keys": keys, "same": same, "runs": lines}


def _grouping_values(title: str, run: Run) -> dict[str, str]:
    """Every setting of a run as text: its mask in words, its setting, then all keys that influence it. title: of its setting."""
    values = {MASK: run.mask_name, SETTING: title, "state": run.status}
    return values | {key: str(value)[:MAX_TEXT] for key, value in flat(identity_keys(run.config)).items()}


def _shown_steps(curves: Sequence[pd.Series]) -> set[int]:
    """The same at most MAX_POINTS steps for all runs, the last one included."""
    steps = sorted({step for curve in curves for step in curve.index}, reverse=True)
    return set(steps[:: max(1, -(-len(steps) // MAX_POINTS))])


def error_series(run: Run, metric: str) -> pd.Series:
    """Standard error over prompts of an evaluated metric by step; NaN where it is not known."""
    return pd.Series({entry.step: entry_error(run, entry, metric) for entry in run.entries if metric in entry.metrics}, dtype=float)


def _curve(values: pd.Series, shown: set[int]) -> list[list[float]] | None:
    """Steps and values of a run's metric at the shown steps; None if it does not have it. Leaves out what is not finite."""
    kept = {step: float(f"{value:.5g}") for step, value in values.items() if step in shown and math.isfinite(value)}
    return [list(kept), list(kept.values())] if kept else None
