"""Many random masks at one sparsity against full training (paper, Figures 1 and 2)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mth.analysis.aggregate import last_value, mean_curve, series, successes
from mth.analysis.errors import curve, difference_error, error, results
from mth.analysis.figures.base import CARRIED, ERRORS, INTERVAL, SEEDS, FigureSpec, Item, Setting, rounded, seeds_of
from mth.analysis.needs import Need
from mth.analysis.rates import at_best_rates
from mth.analysis.style import BLUE, SKY, draw_full_training, panels, step_axis
from mth.foundations.errors import UserError
from mth.foundations.statistics import plus_minus


def make(setting: Setting, needed: Need) -> list[Item]:
    """One panel and one row per task. Raises UserError if no finished run has a mask."""
    figure, axes = panels(len(setting.tasks), same_y=True)
    rows, sentences = [], []
    for task, panel in zip(setting.tasks, axes, strict=True):
        key = setting.key(task)
        runs = at_best_rates(setting.usable(needed.runs, task))
        full, sparse = [run for run in runs if run.is_full], [run for run in runs if not run.is_full]
        if not sparse:
            raise UserError(f"no finished run of {needed.experiment} has a mask")
        percent = sparse[0].sparsity
        draw(panel, [series(run, key) for run in sparse], mean_curve(sparse, key), curve(full, key), seeds_of(full))
        panel.set(title=f"{task}, {percent:g} % sparsity", ylabel=setting.label)
        finals = [last_value(run, key) for run in sparse]
        reference = float(np.mean([last_value(run, key) for run in full])) if full else float("nan")
        row = {"task": task, "sparsity %": percent, "masks": len(sparse), "collapsed": sum(run.collapsed for run in sparse)}
        row |= rounded(results(sparse, key)) | {"worst": min(finals), "best": max(finals), "full": reference}
        if full:
            hits, count, threshold = successes(finals, reference)
            distance = rounded({"to full": float(np.mean(finals)) - reference, "to full error": difference_error(sparse, full, key)})
            if len(full) > 1:
                row |= rounded({"full std": results(full, key)["std"]}) | {"full runs": len(full)}
            row |= rounded({"full error": error(full, key)}) | {"successes": hits, "threshold": round(threshold, 4)} | distance
            sentences.append(
                f"{task}: {hits} of {count} masks at or above full training minus one std of the masks ({threshold:.3f}); "
                f"mean of the masks minus full training: {plus_minus(distance['to full'], distance['to full error'], '+')}."
            )
        rows.append(row)
    sentences += [SEEDS] * any("full runs" in row for row in rows) + [CARRIED] * setting.config.collapse.stop
    caption = " ".join([f"Thin lines are masks, their band is one std; full training is dashed. {ERRORS} {INTERVAL}", *sentences])
    return [Item("masks", "Many random masks (Figures 1 and 2)", caption, figure, pd.DataFrame(rows), needed)]


def draw(axes: Axes, curves: Sequence[pd.Series], mean: pd.DataFrame, full: pd.DataFrame, full_name: str) -> None:
    """One thin line per mask if there are several, their mean with a band of one std, full training dashed. full_name: its label."""
    label = "one mask"
    if len(curves) > 1:
        label = f"mean of {len(curves)} masks"
        for number, values in enumerate(curves):
            axes.plot(values.index, values, color=SKY, linewidth=0.7, alpha=0.8, label="one mask" if number == 0 else None)
        low, high = mean["mean"] - mean["std"], mean["mean"] + mean["std"]
        axes.fill_between(mean.index, low, high, color=BLUE, alpha=0.3, linewidth=0, label="one std")
    axes.plot(mean.index, mean["mean"], color=BLUE, linewidth=2, label=label)
    draw_full_training(axes, full, full_name)
    step_axis(axes)
    axes.legend(fontsize=8, frameon=False)


FIGURE = FigureSpec("masks", make, position=10, experiments=("fig1_masks_1.5b", "fig2_masks_0.5b"))
