"""The look of all figures: panels, colours, markers, legends. Colours are from Okabe and Ito (2008), safe for colour-blind readers."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLACK, BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P")


MAX_COLUMNS = 2  # panels in a row: more would be too small to read on a page


def panels(count: int, height: float = 4.2, same_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of at most MAX_COLUMNS; it needs no display.

    height: of a row, in inches. same_y: give all panels the same vertical range, for panels that show the same quantity.
    """
    columns = min(count, MAX_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.4, 5.2 * columns), height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=same_y).ravel().tolist()
    for unused in grid[count:]:
        unused.remove()
    for each in grid[:count]:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelleft=True)  # shared axes hide them
    return figure, grid[:count]


def legend_below(axes: Axes) -> None:
    """Put the legend below the axes, for figures whose lines may be anywhere inside."""
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def level_style(number: int, percent: float) -> dict[str, Any]:
    """Colour, marker and label of a sparsity. number: its place among the figure's sparsities; 0 is full training."""
    color = BLACK if percent == 0 else COLORS[(number - 1) % len(COLORS)]
    label = "full training" if percent == 0 else f"{percent:g} % sparsity"
    again = max(number - 1, 0) // len(COLORS)  # where colours come again, markers differ
    return {"color": color, "marker": MARKERS[(number + again) % len(MARKERS)], "label": label}


def line_style(number: int) -> dict[str, Any]:
    """Color, marker and dots of a figure's line by its number, from 0. The first 18 all differ; none is dashed, which is full training."""
    again, at = divmod(number, len(COLORS))
    return {"color": COLORS[at], "marker": MARKERS[(at + again) % len(MARKERS)], "linestyle": ("-", ":", "-.")[again % 3]}


def bars(rows: pd.DataFrame) -> pd.Series:
    """Half the length of each row's error bar: one std over runs, or the standard error over prompts of a single run."""
    return rows["std"].fillna(rows["error"]).fillna(0)


def step_axis(axes: Axes) -> None:
    """Label the horizontal axis as optimizer steps, with whole numbers at its ticks."""
    axes.set(xlabel="optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_full_training(axes: Axes, curve: pd.DataFrame, name: str = "full training") -> None:
    """Draw full training over steps as a dashed black line with its band. curve: from `errors.curve`; nothing is drawn if it is empty.

    name: its label.
    """
    if len(curve):
        axes.fill_between(curve.index, curve["mean"] - curve["band"], curve["mean"] + curve["band"], color=BLACK, alpha=0.1, linewidth=0)
        axes.plot(curve.index, curve["mean"], "--", color=BLACK, linewidth=1.6, label=name, zorder=5)
