"""Many runs as one tidy pandas frame, and what figures need of it: means, bands, success counts, bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mth.analysis.runs import Run
from mth.config import flat, to_plain

RESAMPLES = 10_000
SHORT = {
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
    """One row per run: name, status, reason, steps done, commit, identity, and the columns of SHORT."""
    rows = []
    for run in runs:
        values = flat(to_plain(run.config))
        steps = run.entries[-1].step if run.entries else 0
        head = {"run": run.name, "status": run.status, "reason": run.reason, "steps": steps, "commit": run.commit, "identity": run.identity}
        rows.append(head | {column: values[key] for column, key in SHORT.items()})
    return pd.DataFrame(rows, columns=["run", "status", "reason", "steps", "commit", "identity", *SHORT])


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """Columns run, step, metric, value: every metric of every step. A step that a resume wrote twice counts once, as last written."""
    names: list[int] = []
    steps: list[int] = []
    keys: list[str] = []
    values: list[float] = []
    for number, run in enumerate(runs):
        for step, metrics in {entry.step: entry.metrics for entry in run.entries}.items():
            names += [number] * len(metrics)
            steps += [step] * len(metrics)
            keys += metrics
            values += metrics.values()
    return pd.DataFrame(
        {
            "run": pd.Categorical.from_codes(names, categories=[run.name for run in runs]),
            "step": np.array(steps, dtype=np.int64),
            "metric": pd.Categorical(keys),
            "value": np.array(values, dtype=np.float64),
        }
    )


def tidy(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per (run, step, metric): `points` with the columns of `run_table` repeated beside it."""
    table = run_table(runs)
    frame = points(runs)
    codes = frame["run"].cat.codes.to_numpy()
    columns = {
        name: pd.Categorical.from_codes(*_codes(table[name], codes)) for name in table.columns if name not in ("run", "reason", "identity")
    }
    return frame.assign(**columns)


def _codes(column: pd.Series, rows: np.ndarray) -> tuple[np.ndarray, pd.Index]:
    codes, categories = pd.factorize(column)
    return codes[rows], pd.Index(categories)


def series(run: Run, metric: str) -> pd.Series:
    """A metric of one run by step; empty when it has none."""
    values = {entry.step: entry.metrics[metric] for entry in run.entries if metric in entry.metrics}
    return pd.Series(values, dtype=float).sort_index()


def last(run: Run, metric: str) -> float:
    """Value at the last step that has the metric; NaN when none has."""
    values = series(run, metric)
    return float(values.iloc[-1]) if len(values) else float("nan")


def curve(runs: Sequence[Run], metric: str) -> pd.DataFrame:
    """Columns mean, std (of the sample), count by step, over the runs that have the metric there; NaN values count as missing."""
    columns = [values for run in runs if len(values := series(run, metric))]
    if not columns:
        return pd.DataFrame({"mean": [], "std": [], "count": []})
    wide = pd.concat(columns, axis=1)
    return pd.DataFrame({"mean": wide.mean(axis=1), "std": wide.std(axis=1), "count": wide.count(axis=1)})


def successes(values: Sequence[float], reference: float) -> tuple[int, int, float]:
    """How many masks are at or above full training minus one std of the masks; (successes, masks, threshold). A NaN is no success."""
    array = np.asarray(values, dtype=float)
    spread = float(np.nanstd(array, ddof=1)) if np.isfinite(array).sum() > 1 else 0.0
    threshold = reference - spread
    return int((array >= threshold - 1e-12).sum()), array.size, threshold


def bootstrap(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over masks from seeded resamples; NaN below two values."""
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    if array.size < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, array.size, (RESAMPLES, array.size))
    low, high = np.quantile(array[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, std of the sample, bootstrap interval and count of finite values."""
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    low, high = bootstrap(finite.tolist())
    std = float(finite.std(ddof=1)) if finite.size > 1 else float("nan")
    return {"mean": float(finite.mean()) if finite.size else float("nan"), "std": std, "low": low, "high": high, "runs": float(finite.size)}
