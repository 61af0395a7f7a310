"""What training on one task does to another: the paper leaves the question open."""

from collections.abc import Sequence

import pandas as pd

from mth.analysis.aggregate import last, series, summary
from mth.analysis.rates import at_best_rates
from mth.analysis.runs import Run


def changes(runs: Sequence[Run], metrics: dict[str, str]) -> pd.DataFrame:
    """Before, after and change of several metrics by sparsity, each level at its best learning rate.

    metrics: name -> metric. One row per (name, sparsity): before and after as means over runs, the change as a mean with std, a bootstrap
    interval over masks and the number of runs.
    """
    rows = []
    chosen = at_best_rates(runs)
    for name, metric in metrics.items():
        for percent in sorted({run.config.sparsity.percent for run in chosen}):
            here = [run for run in chosen if run.config.sparsity.percent == percent and len(series(run, metric)) > 1]
            if not here:
                continue
            before = [float(series(run, metric).iloc[0]) for run in here]
            after = [last(run, metric) for run in here]
            row = {"accuracy on": name, "sparsity": percent, "learning rate": here[0].config.lr.value}
            row |= {"before": sum(before) / len(before), "after": sum(after) / len(after)}
            change = summary([new - old for new, old in zip(after, before, strict=True)])
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
            values = series(run, metric)
            row[name] = float(values.iloc[-1] - values.iloc[0]) if len(values) > 1 else float("nan")
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["sparsity", "learning rate", "mask seed"], ignore_index=True)
