"""What the answers of a report are made from: one row per evaluated task and sparsity, each level at its best learning rate."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mth.analysis.aggregate import describe, last_value, series, successes
from mth.analysis.collection import Run
from mth.analysis.errors import change_error, difference_error, entry_error, error
from mth.analysis.figures.base import Setting
from mth.analysis.needs import identity_without
from mth.analysis.rates import best_rates

COLUMNS = (
    *("task", "trained", "sparsity", "rate", "tried", "runs", "collapsed", "mean", "std", "error", "worst", "best"),
    *("before", "change", "change error", "to full", "to full error", "successes", "threshold"),
)


def levels(setting: Setting) -> pd.DataFrame:
    """One row per (task, sparsity) of full training and random masks, with COLUMNS. No rows if no such run is done.

    rate: the best learning rate. tried: all that were run, ascending. mean, std, worst, best: over the runs at that rate, after training.
    before: of the base model. to full: mean minus full training. successes: runs at or above threshold, which is full training minus one std
    of the runs. Errors are standard errors over prompts and runs; where runs did not keep their prompts, they are not paired and so larger.
    NaN where something is not known.
    """
    random = [run for run in distinct(setting.runs) if run.done and (run.is_full or run.config.mask.family == "random")]
    rows = []
    for task in setting.tasks:
        runs = [run for run in random if len(series(run, setting.key(task)))]
        full: list[Run] = []
        for percent, rate in best_rates(runs).items():
            level = [run for run in runs if run.sparsity == percent]
            chosen = [run for run in level if run.lr == rate]
            full = chosen if percent == 0 else full
            tried = tuple(sorted({run.lr for run in level}))
            row = {"task": task, "trained": task == setting.config.task.name, "sparsity": percent, "rate": rate, "tried": tried}
            row |= {"runs": len(chosen), "collapsed": sum(run.collapsed for run in chosen)}
            rows.append(row | _results(chosen, setting.key(task)) | (_against(chosen, full, setting.key(task)) if full and percent else {}))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs without those that repeat another one to keep their gradients. A done run wins."""
    return list({identity_without(run.config, ("spectrum",)): run for run in sorted(runs, key=lambda run: run.done)}.values())


def _results(runs: Sequence[Run], key: str) -> dict[str, float]:
    """A metric after training, and its change where it was measured before. key: the metric."""
    ends = [(float(values.iloc[0]), float(values.iloc[-1])) for run in runs if len(values := series(run, key)) > 1]
    found = describe([last_value(run, key) for run in runs])
    over_prompts = _known(error(runs, key), _unpaired(runs, key))
    row = {"mean": found["mean"], "std": found["std"], "error": _with_runs(over_prompts, runs, key)}
    row |= {"worst": min(last_value(run, key) for run in runs), "best": max(last_value(run, key) for run in runs)}
    if len(ends) == len(runs):
        before, after = np.mean(ends, axis=0).tolist()
        over_prompts = _known(change_error(runs, key), math.hypot(_unpaired(runs, key, 0), _unpaired(runs, key)))
        row |= {"before": before, "change": after - before, "change error": _with_runs(over_prompts, runs, key)}
    return row


def _against(runs: Sequence[Run], full: Sequence[Run], key: str) -> dict[str, float]:
    """Runs against full training. key: the metric."""
    finals, reference = [last_value(run, key) for run in runs], float(np.mean([last_value(run, key) for run in full]))
    hits, _, threshold = successes(finals, reference)
    over_prompts = _known(difference_error(runs, full, key), math.hypot(_unpaired(runs, key), _unpaired(full, key)))
    distance_error = _with_runs(_with_runs(over_prompts, runs, key), full, key)
    return {"to full": float(np.mean(finals)) - reference, "to full error": distance_error, "successes": hits, "threshold": threshold}


def _unpaired(runs: Sequence[Run], key: str, index: int = -1) -> float:
    """The mean standard error over prompts of single runs, after (-1) or before (0) training. That of their mean is no larger."""
    return float(np.mean([entry_error(run, [entry for entry in run.entries if key in entry.metrics][index], key) for run in runs]))


def _known(paired: float, unpaired: float) -> float:
    return unpaired if math.isnan(paired) else paired


def _with_runs(over_prompts: float, runs: Sequence[Run], key: str) -> float:
    """A standard error over prompts, with the standard error over runs added in quadrature where there are several."""
    if len(runs) < 2:
        return over_prompts
    return math.hypot(over_prompts, describe([last_value(run, key) for run in runs])["std"] / math.sqrt(len(runs)))
