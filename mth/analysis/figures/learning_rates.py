"""Result over learning rate at each sparsity (paper, Figure 7)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mth.analysis.collection import Run
from mth.analysis.errors import results
from mth.analysis.figures.base import ERRORS, INTERVAL, FigureSpec, Item, Setting, rounded_table
from mth.analysis.needs import Need
from mth.analysis.rates import SELECTION_STEPS, best_rates, selection_score
from mth.analysis.style import bars, legend_below, level_style, panels
from mth.foundations.errors import UserError


def make(setting: Setting, needed: Need) -> list[Item]:
    """One panel per task. Raises UserError if no sparsity was run at two learning rates."""
    figure, axes = panels(len(setting.tasks), same_y=True)
    tables = []
    for task, panel in zip(setting.tasks, axes, strict=True):
        runs = setting.usable(needed.runs, task)
        chosen = best_rates(runs)
        table = by_rate(task, runs, setting.key(task), chosen)
        if table.groupby("sparsity")["lr"].nunique().max() < 2:
            raise UserError("no sparsity was run at two learning rates")
        draw(panel, table, chosen)
        panel.set(title=task, ylabel=f"{setting.label}, after training")
        tables.append(table)
    caption = (
        f"Ring: the rate with the highest mean reward of the last {SELECTION_STEPS} training steps at that sparsity, compared on the masks that all "
        f"its rates share. Bars: one std over masks; of a single run its standard error. {ERRORS} {INTERVAL}"
    )
    return [Item("learning_rates", "Learning rates (Figure 7)", caption, figure, rounded_table(pd.concat(tables)), needed)]


def by_rate(task: str, runs: Sequence[Run], key: str, chosen: Mapping[float, float]) -> pd.DataFrame:
    """One row per sparsity and learning rate. key: metric of the task. chosen: sparsity -> best learning rate."""
    rows = []
    for percent, rate in sorted({(run.sparsity, run.lr) for run in runs}):
        equal = [run for run in runs if (run.sparsity, run.lr) == (percent, rate)]
        row = {"task": task, "sparsity": percent, "lr": rate} | results(equal, key)
        score, collapsed = np.mean([selection_score(run) for run in equal]), sum(run.collapsed for run in equal)
        rows.append(row | {"reward on training prompts": score, "chosen": chosen[percent] == rate, "collapsed": collapsed})
    return pd.DataFrame(rows)


def draw(axes: Axes, table: pd.DataFrame, chosen: Mapping[float, float]) -> None:
    """One line per sparsity, mean and std over masks; a ring marks the rate chosen on training prompts."""
    for number, (percent, rows) in enumerate(table.groupby("sparsity")):
        rows = rows.sort_values("lr")
        style = level_style(number, percent)
        line = "--" if percent == 0 else "-"
        axes.errorbar(rows["lr"], rows["mean"], yerr=bars(rows), markersize=5, capsize=3, linestyle=line, **style)
        best = rows[rows["lr"] == chosen.get(percent)]
        axes.scatter(best["lr"], best["mean"], s=130, facecolors="none", edgecolors=style["color"], linewidths=1.4, zorder=4)
    axes.scatter([], [], s=110, facecolors="none", edgecolors="gray", label="chosen on training prompts")
    axes.set(xscale="log", xlabel="learning rate")
    legend_below(axes)


FIGURE = FigureSpec("learning_rates", make, position=50, experiments=("fig7_lr",), ignore=("mask_seed", "lr", "sparsity"))
