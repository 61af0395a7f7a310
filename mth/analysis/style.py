"""The look of all figures: panels, colours, markers, legends. Colours are from Okabe and Ito (2008), safe for colour-blind readers."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P")


def panels(count: int, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side; it needs no display. height: in inches."""
    figure = Figure(figsize=(max(6.4, 5.2 * count), height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def legend_below(axes: Axes) -> None:
    """Put the legend below the axes, for figures whose lines may be anywhere inside."""
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def level_style(number: int, percent: float) -> dict[str, Any]:
    """Colour, marker and label of a sparsity. number: its place among the figure's sparsities; 0 is full training."""
    color = BLACK if percent == 0 else COLORS[(number - 1) % len(COLORS)]
    label = "full training" if percent == 0 else f"{percent:g} % sparsity"
    return {"color": color, "marker": MARKERS[number % len(MARKERS)], "label": label}


def bars(rows: pd.DataFrame) -> pd.Series:
    """Half the length of each row's error bar: one std over runs, or the standard error over prompts of a single run."""
    return rows["std"].fillna(rows["error"]).fillna(0)


def draw_full_training(axes: Axes, curve: pd.DataFrame) -> None:
    """Draw full training over steps as a dashed black line with its band. curve: from `errors.curve`; nothing is drawn if it is empty."""
    if len(curve):
        axes.fill_between(curve.index, curve["mean"] - curve["band"], curve["mean"] + curve["band"], color=BLACK, alpha=0.1, linewidth=0)
        axes.plot(curve.index, curve["mean"], "--", color=BLACK, linewidth=1.6, label="full training", zorder=5)
