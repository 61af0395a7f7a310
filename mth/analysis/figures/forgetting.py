"""Forgetting: how training on one task changes the results on another. The paper leaves the question open."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mth.analysis.aggregate import describe, series
from mth.analysis.collection import Run
from mth.analysis.errors import change_error, difference_error
from mth.analysis.figures.base import ERRORS, INTERVAL, FigureSpec, Item, Setting, rounded_table
from mth.analysis.needs import Need
from mth.analysis.rates import at_best_rates
from mth.analysis.style import bars, legend_below, level_style, line_style, panels
from mth.foundations.errors import UserError


def make(setting: Setting, needed: Need) -> list[Item]:
    """A panel by sparsity, and one per task that was not trained. Raises UserError if only the trained task was evaluated."""
    trained = setting.config.task.name
    others = [task for task in setting.tasks if task != trained]
    if not others:
        raise UserError(f"only {trained}, the task that was trained, was evaluated; add eval.tasks=[task,another]")
    names = {f"{trained} (trained)": setting.key(trained)} | {f"{task} (not trained)": setting.key(task) for task in others}
    runs = setting.usable(needed.runs, trained)
    table = changes_by_sparsity(runs, names)
    by_run = changes_by_run(runs, setting.key(trained), {task: setting.key(task) for task in others})
    figure, axes = panels(1 + len(others), same_y=True)
    draw_changes(axes[0], table)
    axes[0].set(title=f"trained on {trained}, best learning rates", ylabel=f"change of {setting.label}")
    for task, panel in zip(others, axes[1:], strict=True):
        draw_trade(panel, by_run, task)
        panel.set(title="every run, whatever its learning rate", xlabel=f"change on {trained} (trained)", ylabel=f"change on {task}")
    caption = (
        "Change from the base model to the end of training, runs as in Figure 3. Left: each level at its best learning rate; bars: one std "
        f"over masks; of a single run its standard error. Right: every run of the sweep, so that levels can be compared at equal gain. {ERRORS} {INTERVAL}"
    )
    data = {"forgetting_runs": rounded_table(by_run)}
    return [Item("forgetting", "Gain and forgetting by sparsity", caption, figure, rounded_table(table), needed, data)]


def changes_by_sparsity(runs: Sequence[Run], metrics: dict[str, str]) -> pd.DataFrame:
    """One row per (name, sparsity): a metric before and after training, and its change, each level at its best learning rate.

    metrics: name -> metric. Before and after are means over runs. The change has a mean, std, standard error over prompts, bootstrap
    interval and number of runs.
    """
    rows = []
    chosen = at_best_rates(runs)
    for name, metric in metrics.items():
        full: dict[str, Any] = {}
        for percent in sorted({run.sparsity for run in chosen}):
            level = [run for run in chosen if run.sparsity == percent]
            ends_of = [(run, both) for run in level if (both := _before_and_after(run, metric)) is not None]
            if not ends_of:
                continue
            measured, ends = [run for run, _ in ends_of], np.array([both for _, both in ends_of])
            row = {"accuracy on": name, "sparsity": percent, "learning rate": level[0].lr}
            row |= dict(zip(("before", "after"), ends.mean(0).tolist(), strict=True))
            change = describe(ends[:, 1] - ends[:, 0])
            row |= {"change": change.pop("mean"), "std": change.pop("std"), "error": change_error(measured, metric)} | change
            if percent > 0 and full:
                row |= {"to full": row["change"] - full["change"], "to full error": difference_error(measured, full["runs"], metric)}
            full = {"change": row["change"], "runs": measured} if percent == 0 else full
            rows.append(row)
    return pd.DataFrame(rows)


def changes_by_run(runs: Sequence[Run], trained: str, others: dict[str, str]) -> pd.DataFrame:
    """One row per run at any learning rate: sparsity, learning rate, seeds, gain on the trained task, change on each other task.

    trained: metric of the trained task. others: task -> metric. NaN where a run was not evaluated twice.
    """
    rows = []
    several = len({run.config.seed.train for run in runs}) > 1
    for run in runs:
        row = {"sparsity": run.sparsity, "learning rate": run.lr, "mask seed": run.config.mask_seed}
        row |= {"train seed": run.config.seed.train} if several else {}
        for name, metric in {"gain": trained, **others}.items():
            ends = _before_and_after(run, metric)
            row[name] = ends[1] - ends[0] if ends else float("nan")
            row[f"{name} error"] = change_error([run], metric)
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["sparsity", "learning rate", "mask seed"], ignore_index=True)


def _before_and_after(run: Run, metric: str) -> tuple[float, float] | None:
    """First and last value of a metric; None if it has fewer than two."""
    values = series(run, metric)
    return (float(values.iloc[0]), float(values.iloc[-1])) if len(values) > 1 else None


def draw_changes(axes: Axes, table: pd.DataFrame) -> None:
    """Change by sparsity, one line per task, mean and std over masks. table: from `changes_by_sparsity`."""
    names = sorted(set(table["sparsity"]))
    for number, (task, rows) in enumerate(table.groupby("accuracy on", sort=False)):
        place = np.array([names.index(percent) for percent in rows["sparsity"]]) + 0.06 * number
        axes.errorbar(place, rows["change"], yerr=bars(rows), markersize=5, capsize=4, label=task, **line_style(number))
    axes.axhline(0, color="gray", linewidth=1.2, linestyle=":", label="base model")
    axes.set(xticks=range(len(names)), xticklabels=[f"{percent:g}" for percent in names], xlabel="sparsity (% of entries frozen)")
    legend_below(axes)


def draw_trade(axes: Axes, by_run: pd.DataFrame, other: str) -> None:
    """Gain on the trained task against the change on another, one dot per run, coloured by sparsity. by_run: from `changes_by_run`."""
    for number, (percent, rows) in enumerate(by_run.groupby("sparsity")):
        style = level_style(number, percent)
        axes.errorbar(rows["gain"], rows[other], yerr=rows[f"{other} error"].fillna(0), fmt="none", ecolor=style["color"], alpha=0.3)
        axes.scatter(rows["gain"], rows[other], s=26, alpha=0.8, **style)
    axes.axhline(0, color="gray", linewidth=1.2, linestyle=":")
    axes.axvline(0, color="gray", linewidth=1.2, linestyle=":")
    legend_below(axes)


FIGURE = FigureSpec("forgetting", make, position=30, experiments=("fig3_sparsity",), ignore=("mask_seed", "lr", "sparsity"))
