"""Memory that the runs allocated (paper, Table 5)."""

import pandas as pd

from mth.analysis.figures.base import FigureSpec, Item, Setting, rounded_table
from mth.analysis.memory import MIB
from mth.analysis.needs import Need
from mth.foundations.errors import UserError


def make(setting: Setting, needed: Need) -> list[Item]:
    """A table without a picture, means over runs. Raises UserError if no finished run says what it allocated."""
    rows = []
    for run in needed.runs:
        summary = run.summary
        if run.done and summary.ticket_bytes and summary.active_parameters is not None:
            peak = float("nan") if summary.peak_memory_bytes is None else summary.peak_memory_bytes
            row = {"mask": run.mask_name, "sparsity %": run.sparsity, "active": summary.active_parameters}
            rows.append(row | {f"{part} KiB": size / 1024 for part, size in summary.ticket_bytes.items()} | {"peak MiB": peak / MIB})
    if not rows:
        raise UserError("no finished run says what it allocated")
    table = pd.DataFrame(rows).groupby(["sparsity %", "mask", "active"], as_index=False).mean(numeric_only=True)
    caption = "Bytes of the ticket as allocated, and the peak memory of the process (of the GPU where one trained); means over runs."
    return [Item("memory", "Memory of the runs (Table 5)", caption, table=rounded_table(table, digits=1))]


FIGURE = FigureSpec("memory", make, position=90)
