"""The learning rate that `lr=table2` gives a model at a sparsity."""

import math
from fractions import Fraction
from itertools import pairwise

from mth.config import paper
from mth.foundations.errors import UserError

# Model -> sparsity in percent -> learning rate. The embedded model's own table was measured on its two tasks.
RATES: dict[str, dict[float, float]] = {
    **{model: dict(zip(paper.LEVELS, rates, strict=True)) for model, rates in paper.LEARNING_RATES.items()},
    "smollm2-135m": dict(zip(paper.LEVELS, (1e-5, 1e-3, 3e-3, 1e-2, 1e-2, 1e-1, 3e-1), strict=True)),
    "tiny": dict(zip(paper.LEVELS, (1e-4, 5e-3, 1.5e-2, 3e-2, 9e-2, 1e-1, 1e-1), strict=True)),
}


def table_lr(table: str | None, percent: float) -> float:
    """Learning rate of a model's table at a sparsity; between two levels, linear in log(rate) over log(density).

    Raises UserError if there is no such table.
    """
    if table not in RATES:
        raise UserError(f"model.lr_table={table} has no learning rates; give lr.value=... or one of model.lr_table={','.join(RATES)}")
    points = sorted((math.log(density(level)), math.log(rate)) for level, rate in RATES[table].items())
    x = max(math.log(density(percent)), points[0][0])
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return float(f"{math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0)):.6g}")
    raise AssertionError("density above 1")


def density(percent: float | str) -> Fraction:
    """Trained share of the parameters as an exact fraction: 99.9 is read as the decimal 99.9, not as its nearest double."""
    return 1 - Fraction(str(percent)) / 100
