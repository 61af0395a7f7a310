"""A random mask against single decoder layers, with the same budget and as a whole (paper, Figures 5 and 6)."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from mth.analysis.collection import Run
from mth.analysis.errors import curve, results
from mth.analysis.figures.base import CARRIED, ERRORS, INTERVAL, SEEDS, FigureSpec, Item, Setting, rounded
from mth.analysis.needs import Need
from mth.analysis.rates import SELECTION_STEPS, at_best_rates
from mth.analysis.style import draw_full_training, legend_below, line_style, panels, step_axis


def make(setting: Setting, needed: Need) -> list[Item]:
    """One panel per task; the table has a row per task and mask."""
    figure, axes = panels(len(setting.tasks), same_y=True)
    rows, several = [], False
    for task, panel in zip(setting.tasks, axes, strict=True):
        key = setting.key(task)
        by_mask: dict[str, list[Run]] = {}
        for run in setting.usable(needed.runs, task):
            by_mask.setdefault(run.mask_name, []).append(run)
        curves, full = {}, curve([], key)
        for name, tried in by_mask.items():
            chosen = at_best_rates(tried)
            collapsed = sum(run.collapsed for run in chosen)
            if chosen[0].is_full:
                full, several = curve(chosen, key), len(chosen) > 1
            else:
                curves[f"{name} ({collapsed} of {len(chosen)} collapsed)" if collapsed else name] = curve(chosen, key)
            counts = sorted(run.summary.active_parameters for run in chosen if run.summary.active_parameters is not None)
            row = {"task": task, "mask": name, "active": counts[0] if counts else None, "learning rate": chosen[0].lr}
            row |= {"rates tried": len({run.lr for run in tried})}
            rows.append(row | rounded(results(chosen, key)) | {"collapsed": collapsed})
        draw(panel, curves, full)
        panel.set(title=task, ylabel=setting.label)
    caption = (
        f"Each at its best learning rate among those run (reward of the last {SELECTION_STEPS} training steps). "
        "matched: as many entries as the random mask has, inside one decoder layer; whole layer: every entry of it. Full training is dashed. "
        f"Bands: one std over masks; of a single run its standard error. {ERRORS} {INTERVAL}"
    ) + "".join(f" {part}" for part, there in ((SEEDS, several), (CARRIED, setting.config.collapse.stop)) if there)
    return [Item("structured", "Single layers against a random mask (Figures 5 and 6)", caption, figure, pd.DataFrame(rows), needed)]


def draw(axes: Axes, curves: Mapping[str, pd.DataFrame], full: pd.DataFrame) -> None:
    """One line per mask, with a band of one std, or of its standard error where there is one run; full training dashed."""
    for number, (name, values) in enumerate(curves.items()):
        style = line_style(number)
        axes.plot(values.index, values["mean"], **style, markersize=4, label=name)
        low, high = values["mean"] - values["band"], values["mean"] + values["band"]
        axes.fill_between(values.index, low, high, color=style["color"], alpha=0.12, linewidth=0)
    draw_full_training(axes, full)
    step_axis(axes)
    legend_below(axes)


# mask: families of the user's own, the middle layer and the like belong too, at the experiment's sparsity
FIGURE = FigureSpec("structured", make, position=40, experiments=("fig5_6_structured",), ignore=("mask", "mask_seed", "lr"))
