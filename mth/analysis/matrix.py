"""Forgetting across tasks: what training on each task, at each sparsity, does to every task that was evaluated."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mth.analysis.figures.base import Item, Setting, metric_name, rounded_table
from mth.analysis.levels import levels
from mth.foundations.statistics import plus_minus

SLUG = "forgetting_matrix"


def matrices(settings: Sequence[Setting]) -> list[Item]:
    """A matrix per model whose runs were trained on several tasks, or evaluated on more than two."""
    by_model: dict[str, list[Setting]] = {}
    for setting in settings:
        by_model.setdefault(setting.config.model.name, []).append(setting)
    items = []
    for model, group in by_model.items():
        table = changes(group)
        if table.empty or (len(group) == 1 and table["evaluated"].nunique() < 3) or table["evaluated"].nunique() < 2:
            continue
        slug = SLUG if len(by_model) == 1 else f"{SLUG}_{model}"
        metric = metric_name(group[0].metric)
        caption = (
            f"Change of {metric} from the base model to the end of training, ± its standard error over prompts and runs. One panel per setting; a "
            "row is a sparsity at its best learning rate, a column an evaluated task. The trained task has a frame."
        )
        title = f"Forgetting across tasks, {model}" if len(by_model) > 1 else "Forgetting across tasks"
        items.append(Item(slug, title, caption, draw(table), rounded_table(table.drop(columns="title"))))
    return items


def changes(settings: Sequence[Setting]) -> pd.DataFrame:
    """One row per (setting, trained task, sparsity, evaluated task): change, error, runs. No rows if nothing was evaluated twice."""
    rows = []
    for setting in settings:
        own = {"setting": setting.title, "title": setting.title.removeprefix(f"{setting.config.model.name} on ")}
        for row in levels(setting).dropna(subset="change").to_dict("records"):
            place = own | {"trained": setting.config.task.name, "sparsity": row["sparsity"], "evaluated": row["task"]}
            rows.append(place | {"change": row["change"], "error": row["change error"], "runs": row["runs"]})
    return pd.DataFrame(rows, columns=["setting", "title", "trained", "sparsity", "evaluated", "change", "error", "runs"])


def draw(table: pd.DataFrame) -> Figure:
    """One panel per setting, all with the same colours and columns. table: from `changes`."""
    tasks = list(dict.fromkeys([*table["trained"], *table["evaluated"]]))
    tasks = [task for task in tasks if task in set(table["evaluated"])]
    settings = list(table.groupby("setting", sort=False))
    heights = [0.7 + 0.36 * rows["sparsity"].nunique() for _, rows in settings]
    figure = Figure(figsize=(max(6.4, 2.2 + 1.75 * len(tasks)), sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(len(settings), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    limit = float(np.nanmax(np.abs(table["change"]))) or 1.0
    for panel, (_, rows) in zip(axes, settings, strict=True):
        _panel(panel, rows, tasks, limit)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, tasks: Sequence[str], limit: float) -> None:
    names = sorted(rows["sparsity"].unique())
    trained = rows["trained"].iloc[0]
    values = rows.pivot_table(index="sparsity", columns="evaluated", values="change").reindex(index=names, columns=tasks)
    axes.imshow(values.to_numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row in rows.itertuples():
        text = plus_minus(row.change, row.error, "+")
        color = "white" if abs(row.change) > 0.65 * limit else "black"
        axes.text(tasks.index(row.evaluated), names.index(row.sparsity), text, ha="center", va="center", fontsize=8, color=color)
    if trained in tasks:
        axes.add_patch(_frame(tasks.index(trained), len(names)))
    labels = ["full training" if percent == 0 else f"{percent:g} %" for percent in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=8)
    axes.set_title(f"trained on {rows['title'].iloc[0]}", fontsize=9)
    axes.tick_params(length=0)


def _frame(column: int, rows: int) -> Rectangle:
    """A frame around a column of a panel."""
    return Rectangle((column - 0.5, -0.5), 1, rows, fill=False, edgecolor="black", linewidth=1.6, clip_on=False)
