"""Standard errors over prompts. All runs of a setting answer the same prompts, so differences between runs and steps are paired."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mth.analysis.aggregate import describe, last_value, mean_curve
from mth.analysis.collection import Run
from mth.foundations.statistics import standard_error
from mth.runs.journal import Entry
from mth.runs.metrics import EVAL_REWARD, PASS_AT_1, PROMPTS, eval_metric, of_prompts, with_error

UNKNOWN = float("nan")


def outcomes(run: Run, metric: str, index: int = -1) -> np.ndarray | None:
    """A metric of each prompt of a run's first (0) or last (-1) evaluation; None if the run did not keep it, or if it is no mean over prompts."""
    _, task, key = metric.split("/", 2)
    kept = [entry for entry in run.entries if entry.rewards.get(task)]
    if not kept or key not in (PASS_AT_1, EVAL_REWARD):
        return None
    chosen = kept[index]
    return np.array(of_prompts(chosen.rewards[task], chosen.metrics.get(eval_metric(task, PROMPTS)))[key])


def results(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """`describe` of a metric after training, with the standard error over prompts of its mean."""
    found = describe([last_value(run, metric) for run in runs])
    return {"mean": found["mean"], "std": found["std"], "error": error(runs, metric)} | found


def error(runs: Sequence[Run], metric: str, index: int = -1) -> float:
    """Standard error over prompts of the runs' mean, after (-1) or before (0) training. NaN if it is not known."""
    per_prompt = _mean_over_runs([outcomes(run, metric, index) for run in runs])
    if per_prompt is not None:
        return _of_mean(per_prompt)
    entries = [entry for entry in runs[0].entries if metric in entry.metrics] if len(runs) == 1 else []
    return entry_error(runs[0], entries[index], metric) if entries else UNKNOWN


def entry_error(run: Run, entry: Entry, metric: str) -> float:
    """Standard error of one evaluation; of pass@1 in runs that did not log it, from the share and the number of prompts. NaN if not known."""
    _, task, key = metric.split("/", 2)
    if (logged := entry.metrics.get(with_error(metric))) is not None:
        return logged
    prompts, share = entry.metrics.get(eval_metric(task, PROMPTS)) or run.config.eval.of(task).samples or 0, entry.metrics[metric]
    return float(np.sqrt(share * (1 - share) / (prompts - 1))) if key == PASS_AT_1 and prompts > 1 else UNKNOWN


def difference_error(left: Sequence[Run], right: Sequence[Run], metric: str) -> float:
    """Standard error over prompts of the difference of two means of runs after training. NaN if it is not known."""
    means = [_mean_over_runs([outcomes(run, metric) for run in runs]) for runs in (left, right)]
    return _of_difference(*means)


def change_error(runs: Sequence[Run], metric: str) -> float:
    """Standard error over prompts of the mean change from the base model to the end of training. NaN if it is not known."""
    return _of_difference(*(_mean_over_runs([outcomes(run, metric, index) for run in runs]) for index in (0, -1)))


def curve(runs: Sequence[Run], metric: str) -> pd.DataFrame:
    """`mean_curve` with a column `band`: one std over runs, or the standard error over prompts of a single run."""
    found = mean_curve(runs, metric)
    band = found["std"].astype(float)
    measured = [run for run in runs if any(metric in entry.metrics for entry in run.entries)]
    if len(measured) == 1:
        errors = {entry.step: entry_error(measured[0], entry, metric) for entry in measured[0].entries if metric in entry.metrics}
        band = pd.Series(errors, dtype=float).reindex(found.index)
    return found.assign(band=band)


def _mean_over_runs(values: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Mean over runs of each prompt; None if a run has no values or another number of them."""
    known = [each for each in values if each is not None]
    if not known or len(known) < len(values) or len({len(each) for each in known}) > 1:
        return None
    return np.mean(known, axis=0)


def _of_mean(per_prompt: np.ndarray) -> float:
    known = standard_error(per_prompt.tolist())
    return UNKNOWN if known is None else known


def _of_difference(left: np.ndarray | None, right: np.ndarray | None) -> float:
    return UNKNOWN if left is None or right is None or len(left) != len(right) else _of_mean(left - right)
