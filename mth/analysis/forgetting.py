"""What training on one task does to another: the paper leaves the question open."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mth.analysis.aggregate import series, summary
from mth.analysis.rates import at_best_rates
from mth.analysis.runs import Run


def _ends(run: Run, metric: str) -> tuple[float, float] | None:
    """First and last value of a metric; None when there are no two."""
    values = series(run, metric)
    return (float(values.iloc[0]), float(values.iloc[-1])) if len(values) > 1 else None


def changes(runs: Sequence[Run], metrics: dict[str, str]) -> pd.DataFrame:
    """Before, after and change of several metrics by sparsity, each level at its best learning rate.

    metrics: name -> metric. One row per (name, sparsity): before and after as means over runs, the change as a mean with std, a bootstrap
    interval over masks and the number of runs.
    """
    rows = []
    chosen = at_best_rates(runs)
    for name, metric in metrics.items():
        for percent in sorted({run.config.sparsity.percent for run in chosen}):
            here = [run for run in chosen if run.config.sparsity.percent == percent]
            ends = np.array([both for run in here if (both := _ends(run, metric)) is not None])
            if not len(ends):
                continue
            row = {"accuracy on": name, "sparsity": percent, "learning rate": here[0].config.lr.value}
            row |= dict(zip(("before", "after"), ends.mean(0).tolist(), strict=True))
            change = summary(ends[:, 1] - ends[:, 0])
            rows.append(row | {"change" if key == "mean" else key: value for key, value in change.items()})
    return pd.DataFrame(rows)


def by_run(runs: Sequence[Run], trained: str, others: dict[str, str]) -> pd.DataFrame:
    """One row per run at any learning rate: sparsity, learning rate, mask seed, change of the trained metric and of each other one.

    trained: metric of the trained task. others: name -> metric.
    """
    rows = []
    for run in runs:
        row = {"sparsity": run.config.sparsity.percent, "learning rate": run.config.lr.value, "mask seed": run.config.mask_seed}
        for name, metric in {"gain": trained, **others}.items():
            ends = _ends(run, metric)
            row[name] = ends[1] - ends[0] if ends else float("nan")
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["sparsity", "learning rate", "mask seed"], ignore_index=True)
