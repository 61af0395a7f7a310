"""Result by sparsity, each level at its best learning rate (paper, Figure 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mth.analysis.aggregate import last_value, series
from mth.analysis.collection import Run
from mth.analysis.errors import difference_error, results
from mth.analysis.figures.base import ERRORS, INTERVAL, FigureSpec, Item, Setting, rounded_table
from mth.analysis.needs import Need
from mth.analysis.rates import SELECTION_STEPS, best_rates
from mth.analysis.style import BLACK, BLUE, ORANGE, SKY, bars, legend_below, panels

Dots = dict[float, list[tuple[float, bool]]]  # sparsity -> (result, collapsed) of each run


def make(setting: Setting, needed: Need) -> list[Item]:
    """One panel per task; the table has a row per task and level."""
    figure, axes = panels(len(setting.tasks), same_y=True)
    tables: list[pd.DataFrame] = []
    commands: list[str] = []
    for task, panel in zip(setting.tasks, axes, strict=True):
        key = setting.key(task)
        runs = setting.usable(needed.runs, task)
        table, dots = by_level(task, runs, key)
        base = float(np.nanmean([series(run, key).iloc[0] for run in runs]))
        draw(panel, table, dots, base)
        panel.set(title=task, ylabel=f"{setting.label}, after training")
        tables.append(table)
        commands += missing_masks(runs, needed)
    caption = (
        f"Each level at the learning rate with the highest mean reward of the last {SELECTION_STEPS} training steps (training prompts), among "
        "those that were run, compared on the masks that all rates share; reported on held-out prompts. "
        f"Bars: one std over masks; of a single run its standard error. {ERRORS} {INTERVAL}"
    )
    item = Item("sparsity", "Result by sparsity (Figure 3)", caption, figure, rounded_table(pd.concat(tables)), needed)
    item.advice = ("Levels whose best rate has fewer masks than another rate:", list(dict.fromkeys(commands)))
    return [item]


def by_level(task: str, runs: Sequence[Run], key: str) -> tuple[pd.DataFrame, Dots]:
    """One row per level at its best learning rate, and the results of its runs. key: metric of the task."""
    rows: list[dict[str, Any]] = []
    dots: Dots = {}
    full: list[Run] = []
    for percent, rate in best_rates(runs).items():
        level = [run for run in runs if run.sparsity == percent]
        chosen = [run for run in level if run.lr == rate]
        finals = [last_value(run, key) for run in chosen]
        dots[percent] = [(value, run.collapsed) for value, run in zip(finals, chosen, strict=True)]
        row = {"task": task, "sparsity": percent, "learning rate": rate, "rates tried": len({run.lr for run in level})}
        rows.append(row | results(chosen, key) | {"collapsed": sum(run.collapsed for run in chosen)})
        full = chosen if percent == 0 else full
        if full and percent > 0:
            rows[-1] |= {"to full": rows[-1]["mean"] - rows[0]["mean"], "to full error": difference_error(chosen, full, key)}
    return pd.DataFrame(rows), dots


def missing_masks(runs: Sequence[Run], needed: Need) -> list[str]:
    """Commands for masks of the experiment that a level has at another learning rate and lacks at its best one."""
    commands = []
    for percent, rate in best_rates(runs).items():
        level = [run for run in runs if run.sparsity == percent]
        tried = {run.config.mask_seed for run in level} & needed.mask_seeds
        missing = sorted(tried - {run.config.mask_seed for run in level if run.lr == rate})
        if missing:
            seeds = ",".join(map(str, missing))
            commands.append(f"{needed.command} sparsity.percent={percent:g} lr.value={rate:g} mask_seed={seeds}")
    return commands


def draw(axes: Axes, levels: pd.DataFrame, dots: Mapping[float, Sequence[tuple[float, bool]]], base: float) -> None:
    """Mean and std over masks by sparsity, every run as a dot, collapsed ones as a cross. levels: from `by_level`. base: of the base model."""
    table, full = levels[levels["sparsity"] > 0], levels[levels["sparsity"] == 0]
    names = [f"{percent:g}" for percent in table["sparsity"]]
    place = np.arange(len(names))
    axes.errorbar(
        place,
        table["mean"],
        yerr=bars(table),
        color=BLUE,
        marker="o",
        capsize=4,
        label="mean and std over masks",
    )
    for x, percent in zip(place, table["sparsity"], strict=True):
        for good, marker, color in ((True, "o", SKY), (False, "x", ORANGE)):
            values = [value for value, collapsed in dots[percent] if collapsed != good]
            axes.scatter(np.full(len(values), x + 0.12), values, s=18, marker=marker, color=color, zorder=3)
    axes.scatter([], [], s=18, color=SKY, label="one mask")
    if any(collapsed for percent in table["sparsity"] for _, collapsed in dots[percent]):
        axes.scatter([], [], s=18, marker="x", color=ORANGE, label="one mask, run collapsed")
    for result in full.itertuples():
        spread_name = f"std over {result.runs:.0f} seeds" if np.isfinite(result.std) else "standard error"
        axes.axhline(result.mean, linestyle="--", color=BLACK, linewidth=1.6, label=f"full training and its {spread_name}")
        spread = result.std if np.isfinite(result.std) else result.error
        axes.axhspan(result.mean - spread, result.mean + spread, color=BLACK, alpha=0.08, linewidth=0)
    if np.isfinite(base):
        axes.axhline(base, linestyle=":", color="gray", linewidth=1.2, label="base model")
    axes.set(xticks=place, xticklabels=names, xlim=(-0.4, len(names) - 0.6), xlabel="sparsity (% of entries frozen)")
    legend_below(axes)


FIGURE = FigureSpec("sparsity", make, position=20, experiments=("fig3_sparsity",), ignore=("mask_seed", "lr", "sparsity"))
