"""Overlap of the random masks that were trained (paper, Table 3)."""

from mth.analysis.figures.base import FigureSpec, Item, Setting
from mth.analysis.needs import Need
from mth.analysis.tables import overlap_tables
from mth.foundations.errors import UserError
from mth.models.shapes import parameter_shapes


def make(setting: Setting, needed: Need) -> list[Item]:
    """A table without a picture. Raises UserError if no sparsity has two finished runs with different random masks."""
    levels: dict[float, set[int]] = {}
    for run in needed.runs:
        if run.done and not run.is_full and run.config.mask.family == "random":
            levels.setdefault(run.sparsity, set()).add(run.config.mask_seed)
    several = {percent: sorted(seeds) for percent, seeds in sorted(levels.items()) if len(seeds) > 1}
    if not several:
        raise UserError("no sparsity has two finished runs with different random masks")
    model = setting.config.model
    shapes = next((run.shapes for run in needed.runs if run.shapes), None) or dict(parameter_shapes(model))
    for run in needed.runs:
        run.shapes = shapes  # a frame keeps them, so that it needs no model
    table, tensors = overlap_tables(model.name, shapes, several)
    caption = "Jaccard similarity of all pairs, counted exactly; per tensor in overlap_tensors.csv."
    return [Item("overlap", "Overlap of the masks trained here (Table 3)", caption, table=table, data={"overlap_tensors": tensors})]


FIGURE = FigureSpec("overlap", make, position=80)
