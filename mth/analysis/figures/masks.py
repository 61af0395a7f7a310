"""Many random masks at one sparsity against full training (paper, Figures 1 and 2)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mth.analysis.aggregate import describe, last_value, mean_curve, series, successes
from mth.analysis.figures.base import INTERVAL, FigureSpec, Item, Setting, rounded
from mth.analysis.needs import Need
from mth.analysis.rates import at_best_rates
from mth.analysis.style import BLUE, SKY, draw_full_training, panels
from mth.foundations.errors import UserError


def make(setting: Setting, needed: Need) -> list[Item]:
    """One panel and one row per task. Raises UserError if no finished run has a mask."""
    figure, axes = panels(len(setting.tasks))
    rows, sentences = [], []
    for task, panel in zip(setting.tasks, axes, strict=True):
        key = setting.key(task)
        runs = at_best_rates(setting.usable(needed.runs, task))
        full, sparse = [run for run in runs if run.is_full], [run for run in runs if not run.is_full]
        if not sparse:
            raise UserError(f"no finished run of {needed.experiment} has a mask")
        percent = sparse[0].sparsity
        draw(panel, [series(run, key) for run in sparse], mean_curve(sparse, key), mean_curve(full, key))
        panel.set(title=f"{task}, {percent:g} % sparsity", ylabel=setting.label)
        finals = [last_value(run, key) for run in sparse]
        reference = float(np.mean([last_value(run, key) for run in full])) if full else float("nan")
        row = {"task": task, "sparsity %": percent, "masks": len(sparse), "collapsed": sum(run.collapsed for run in sparse)}
        row |= rounded(describe(finals)) | {"worst": min(finals), "best": max(finals), "full": reference}
        if full:
            hits, count, threshold = successes(finals, reference)
            row |= {"successes": hits, "threshold": round(threshold, 4)}
            sentences.append(f"{task}: {hits} of {count} masks at or above full training minus one std of the masks ({threshold:.3f}).")
        rows.append(row)
    caption = " ".join([f"Thin lines are masks, the band is one std, full training is dashed. {INTERVAL}", *sentences])
    return [Item("masks", "Many random masks (Figures 1 and 2)", caption, figure, pd.DataFrame(rows), needed)]


def draw(axes: Axes, curves: Sequence[pd.Series], mean: pd.DataFrame, full: pd.DataFrame) -> None:
    """One thin line per mask, their mean with a band of one std, full training dashed."""
    for number, values in enumerate(curves):
        axes.plot(values.index, values, color=SKY, linewidth=0.7, alpha=0.8, label="one mask" if number == 0 else None)
    low, high = mean["mean"] - mean["std"], mean["mean"] + mean["std"]
    axes.fill_between(mean.index, low, high, color=BLUE, alpha=0.3, linewidth=0, label="one std")
    axes.plot(mean.index, mean["mean"], color=BLUE, linewidth=2, label=f"mean of {len(curves)} masks")
    draw_full_training(axes, full)
    axes.set(xlabel="optimizer step")
    axes.legend(fontsize=8, frameon=False)


FIGURE = FigureSpec("masks", make, position=10, experiments=("fig1_masks_1.5b", "fig2_masks_0.5b"))
