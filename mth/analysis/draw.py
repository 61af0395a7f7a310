"""The figures, as matplotlib figures without a display. Colours: Okabe and Ito (2008), safe for colour-blind readers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P")


def panels(count: int, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side."""
    figure = Figure(figsize=(max(6.4, 5.2 * count), height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def legend_below(axes: Axes) -> None:
    """A legend outside, where there is no telling which part of the axes stays free."""
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def level_style(number: int, percent: float) -> dict[str, Any]:
    """Colour, marker and label of a sparsity, the `number`-th of a figure."""
    color = BLACK if percent == 0 else COLORS[(number - 1) % len(COLORS)]
    label = "full training" if percent == 0 else f"{percent:g} % sparsity"
    return {"color": color, "marker": MARKERS[number % len(MARKERS)], "label": label}


def full_line(axes: Axes, curve: pd.DataFrame) -> None:
    """Full training over steps: dashed, black."""
    axes.plot(curve.index, curve["mean"], "--", color=BLACK, linewidth=1.6, label="full training", zorder=5)


def masks(axes: Axes, curves: Sequence[pd.Series], mean: pd.DataFrame, full: pd.DataFrame, label: str) -> None:
    """One thin line per mask, their mean with a band of one std, full training dashed (paper, Figures 1 and 2)."""
    for number, values in enumerate(curves):
        axes.plot(values.index, values, color=SKY, linewidth=0.7, alpha=0.8, label="one mask" if number == 0 else None)
    axes.fill_between(
        mean.index, mean["mean"] - mean["std"], mean["mean"] + mean["std"], color=BLUE, alpha=0.3, linewidth=0, label="one std"
    )
    axes.plot(mean.index, mean["mean"], color=BLUE, linewidth=2, label=label)
    if len(full):
        full_line(axes, full)
    axes.set(xlabel="optimizer step", ylabel="pass@1")
    axes.legend(fontsize=8, frameon=False)


def curves(axes: Axes, named: Mapping[str, pd.DataFrame], full: pd.DataFrame) -> None:
    """One line per name, with a band of one std where there are several runs (paper, Figures 5 and 6)."""
    for number, (name, values) in enumerate(named.items()):
        color = COLORS[number % len(COLORS)]
        axes.plot(values.index, values["mean"], color=color, marker=MARKERS[number % len(MARKERS)], markersize=4, label=name)
        axes.fill_between(
            values.index, values["mean"] - values["std"], values["mean"] + values["std"], color=color, alpha=0.12, linewidth=0
        )
    if len(full):
        full_line(axes, full)
    axes.set(xlabel="optimizer step", ylabel="pass@1")
    legend_below(axes)


def levels(axes: Axes, table: pd.DataFrame, values: Mapping[float, Sequence[tuple[float, bool]]], full: float, base: float) -> None:
    """Mean and std over masks by sparsity, every run as a dot, collapsed ones as a cross (paper, Figure 3)."""
    names = [f"{percent:g}" for percent in table["sparsity"]]
    place = np.arange(len(names))
    axes.errorbar(place, table["mean"], yerr=table["std"].fillna(0), color=BLUE, marker="o", capsize=4, label="mean and std over masks")
    for x, percent in zip(place, table["sparsity"], strict=True):
        for good, marker, color in ((True, "o", SKY), (False, "x", ORANGE)):
            dots = [value for value, collapsed in values[percent] if collapsed != good]
            axes.scatter(np.full(len(dots), x + 0.12), dots, s=18, marker=marker, color=color, zorder=3)
    axes.scatter([], [], s=18, color=SKY, label="one mask")
    if any(collapsed for percent in table["sparsity"] for _, collapsed in values[percent]):
        axes.scatter([], [], s=18, marker="x", color=ORANGE, label="one mask, run collapsed")
    if np.isfinite(full):
        axes.axhline(full, linestyle="--", color=BLACK, linewidth=1.6, label="full training")
    if np.isfinite(base):
        axes.axhline(base, linestyle=":", color="gray", linewidth=1.2, label="base model")
    axes.set(
        xticks=place,
        xticklabels=names,
        xlim=(-0.4, len(names) - 0.6),
        xlabel="sparsity (% of entries frozen)",
        ylabel="pass@1 after training",
    )
    legend_below(axes)


def forgetting(axes: Axes, table: pd.DataFrame) -> None:
    """Change of each task's result by sparsity, one line per task, mean and std over masks."""
    names = sorted(set(table["sparsity"]))
    for number, (task, rows) in enumerate(table.groupby("accuracy on", sort=False)):
        place = np.array([names.index(percent) for percent in rows["sparsity"]]) + 0.06 * number
        axes.errorbar(
            place, rows["change"], yerr=rows["std"].fillna(0), color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)],
            markersize=5, capsize=4, label=task,
        )  # fmt: skip
    axes.axhline(0, color="gray", linewidth=1.2, linestyle=":", label="base model")
    axes.set(xticks=range(len(names)), xticklabels=[f"{percent:g}" for percent in names], xlabel="sparsity (% of entries frozen)")
    legend_below(axes)


def trade(axes: Axes, frame: pd.DataFrame, other: str) -> None:
    """Gain on the trained task against the change of another, one dot per run, coloured by sparsity."""
    for number, (percent, rows) in enumerate(frame.groupby("sparsity")):
        axes.scatter(rows["gain"], rows[other], s=26, alpha=0.8, **level_style(number, percent))
    axes.axhline(0, color="gray", linewidth=1.2, linestyle=":")
    axes.axvline(0, color="gray", linewidth=1.2, linestyle=":")
    legend_below(axes)


def rates(axes: Axes, table: pd.DataFrame, chosen: Mapping[float, float]) -> None:
    """Result over learning rate, one line per sparsity; the rate chosen on training prompts has a ring (paper, Figure 7)."""
    for number, (percent, rows) in enumerate(table.groupby("sparsity")):
        rows = rows.sort_values("lr")
        style = level_style(number, percent)
        line = "--" if percent == 0 else "-"
        axes.errorbar(rows["lr"], rows["mean"], yerr=rows["std"].fillna(0), markersize=5, capsize=3, linestyle=line, **style)
        best = rows[rows["lr"] == chosen.get(percent)]
        axes.scatter(best["lr"], best["mean"], s=130, facecolors="none", edgecolors=style["color"], linewidths=1.4, zorder=4)
    axes.scatter([], [], s=110, facecolors="none", edgecolors="gray", label="chosen on training prompts")
    axes.set(xscale="log", xlabel="learning rate", ylabel="pass@1 after training")
    legend_below(axes)


def spectra(axes: Sequence[Axes], eigenvalues: Mapping[str, np.ndarray], error: float) -> None:
    """Eigenvalues (left, log) and their cumulative share (right) of centred and uncentred gradients (paper, Figure 4)."""
    left, right = axes
    for (name, values), color, marker in zip(eigenvalues.items(), COLORS, MARKERS, strict=False):
        share = values / values.sum()
        number = np.arange(1, len(values) + 1)
        visible = share > 1e-9
        left.plot(number[visible], share[visible], color=color, marker=marker, markersize=3, linewidth=1, label=name)
        right.plot(number, np.cumsum(share), color=color, marker=marker, markersize=3, linewidth=1, label=name)
    if error:
        left.axhspan(0, error, color="gray", alpha=0.2, label="within the error of the sketch")
    for level in (0.90, 0.95, 0.99):
        right.axhline(level, color="gray", linewidth=0.8, linestyle=":")
        right.annotate(f"{level:.0%}", (1, level), fontsize=7, color="gray", va="bottom")
    left.set(yscale="log", xlabel="eigenvalue number", ylabel="share of the sum of eigenvalues")
    right.set(xlabel="number of eigenvalues", ylabel="cumulative share", ylim=(0, 1.03))
    for each in axes:
        each.legend(fontsize=8, frameon=False)


def concentration(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Lemma F.6 (left): deviation of the restricted Gram matrix and its bound; proposition 5.2 (right): error of the top-r subspace."""
    left, right = axes
    by_size = frame.groupby("active").agg(["mean", "min", "max"])
    for axis, column, color, marker, label in (
        (left, "deviation", BLUE, "o", "measured, mean and range over masks"),
        (right, "error", BLUE, "o", "best update P V c' (proposition 5.2)"),
        (right, "free", GREEN, "s", "best update on the mask"),
    ):
        part = by_size[column]
        spread = np.array([part["mean"] - part["min"], part["max"] - part["mean"]]).clip(0)
        axis.errorbar(by_size.index, part["mean"], yerr=spread, color=color, marker=marker, capsize=3, label=label)
    bound = by_size["bound"]["mean"]
    left.plot(bound.index, bound, color=ORANGE, linestyle="--", label="bound of lemma F.6 with C = 1")
    left.set(xscale="log", yscale="log", xlabel="active entries k", ylabel="|(d/k) V'PV - I|, spectral norm")
    right.set(xscale="log", xlabel="active entries k", ylabel="relative error in the Fisher norm", ylim=(-0.03, None))
    for axis in axes:
        axis.legend(fontsize=8, frameon=False)
