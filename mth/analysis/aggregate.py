"""Many runs as one tidy pandas frame, and the statistics that figures need: means, bands, success counts, bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mth.analysis.collection import Run
from mth.config.stored import flat, to_plain

RESAMPLES = 10_000
CONFIG_COLUMNS = {
    "model": "model.name",
    "task": "task.name",
    "sparsity": "sparsity.percent",
    "mask": "mask.family",
    "budget": "mask.budget",
    "magnitude": "mask.magnitude",
    "mask_seed": "mask_seed",
    "train_seed": "seed.train",
    "lr": "lr.value",
}


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: name, status, reason, steps done, commit, identity, and CONFIG_COLUMNS."""
    rows = []
    for run in runs:
        values = flat(to_plain(run.config))
        steps = run.entries[-1].step if run.entries else 0
        row = {"run": run.name, "status": run.status, "reason": run.reason, "steps": steps, "commit": run.commit, "identity": run.identity}
        rows.append(row | {column: values[key] for column, key in CONFIG_COLUMNS.items()})
    return pd.DataFrame(rows, columns=["run", "status", "reason", "steps", "commit", "identity", *CONFIG_COLUMNS])


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per (run, step, metric) with the value. A step that was written twice after a resume counts once, as last written."""
    run_codes: list[int] = []
    steps: list[int] = []
    metrics: list[str] = []
    values: list[float] = []
    for code, run in enumerate(runs):
        for step, logged in {entry.step: entry.metrics for entry in run.entries}.items():
            run_codes += [code] * len(logged)
            steps += [step] * len(logged)
            metrics += logged
            values += logged.values()
    return pd.DataFrame(
        {
            "run": pd.Categorical.from_codes(run_codes, categories=[run.name for run in runs]),
            "step": np.array(steps, dtype=np.int64),
            "metric": pd.Categorical(metrics),
            "value": np.array(values, dtype=np.float64),
        }
    )


def tidy_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per (run, step, metric): `points` joined with the columns of `run_table`."""
    table = run_table(runs)
    frame = points(runs)
    codes = frame["run"].cat.codes.to_numpy()
    joined = [name for name in table.columns if name not in ("run", "reason", "identity")]
    return frame.assign(**{name: pd.Categorical.from_codes(*_codes(table[name], codes)) for name in joined})


def _codes(column: pd.Series, rows: np.ndarray) -> tuple[np.ndarray, pd.Index]:
    codes, categories = pd.factorize(column)
    return codes[rows], pd.Index(categories)


def series(run: Run, metric: str) -> pd.Series:
    """A metric of one run by step; empty if the run does not have it."""
    values = {entry.step: entry.metrics[metric] for entry in run.entries if metric in entry.metrics}
    return pd.Series(values, dtype=float).sort_index()


def last_value(run: Run, metric: str) -> float:
    """A metric at the last step that has it; NaN if no step has it."""
    values = series(run, metric)
    return float(values.iloc[-1]) if len(values) else float("nan")


def mean_curve(runs: Sequence[Run], metric: str) -> pd.DataFrame:
    """Mean, sample std and count of a metric by step, over all runs that have the metric. Empty if no run has it.

    A run that its collapse ended keeps its last value from then on. Steps at which a run has no value are left out, so every point is over
    the same runs.
    """
    having = [run for run in runs if len(series(run, metric))]
    if not having:
        return pd.DataFrame({"mean": [], "std": [], "count": []})
    wide = pd.concat([series(run, metric) for run in having], axis=1).sort_index()
    for column, run in enumerate(having):
        if run.collapsed:
            values = wide.iloc[:, column]
            wide.isetitem(column, values.where(wide.index <= values.last_valid_index(), values.ffill()))
    wide = wide.dropna()
    return pd.DataFrame({"mean": wide.mean(axis=1), "std": wide.std(axis=1), "count": wide.count(axis=1)})


def successes(values: Sequence[float], reference: float) -> tuple[int, int, float]:
    """Number of masks that reach full training minus one std of the masks; returns (successes, masks, threshold).

    A NaN counts as a mask and not as a success.
    """
    array = np.asarray(values, dtype=float)
    spread = float(np.nanstd(array, ddof=1)) if np.isfinite(array).sum() > 1 else 0.0
    threshold = reference - spread
    return int((array >= threshold - 1e-12).sum()), array.size, threshold


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, from seeded resamples; NaN for fewer than two finite values."""
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    if array.size < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, array.size, (RESAMPLES, array.size))
    low, high = np.quantile(array[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def describe(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample std, bootstrap interval (low, high) and number (runs) of the finite values."""
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    low, high = bootstrap_interval(finite.tolist())
    std = float(finite.std(ddof=1)) if finite.size > 1 else float("nan")
    return {"mean": float(finite.mean()) if finite.size else float("nan"), "std": std, "low": low, "high": high, "runs": float(finite.size)}
