"""The learning rate of each sparsity, chosen by the reward on training prompts, never by what is reported."""

from collections.abc import Sequence

import numpy as np

from mth.analysis.aggregate import series
from mth.analysis.runs import Run

LAST_STEPS = 10  # training steps whose reward chooses a learning rate


def selection_score(run: Run) -> float:
    """Mean reward of the last training steps: on training prompts, so that what is chosen by it can be reported on held-out ones."""
    values = series(run, "reward/mean")
    return float(values.iloc[-LAST_STEPS:].mean()) if len(values) else float("nan")


def best_rates(runs: Sequence[Run]) -> dict[float, float]:
    """Learning rate per sparsity with the highest `selection_score`, compared on the mask seeds that all rates of the level have.

    Of equal scores, as where nothing learns, the rate with more masks counts.
    """
    chosen = {}
    for percent in sorted({run.config.sparsity.percent for run in runs}):
        by_rate: dict[float, dict[int, float]] = {}
        for run in runs:
            if run.config.sparsity.percent == percent:
                by_rate.setdefault(run.config.lr.value or 0, {})[run.config.mask_seed] = selection_score(run)
        common = set.intersection(*map(set, by_rate.values()))
        score = {rate: np.mean([value for seed, value in seeds.items() if seed in common or not common]) for rate, seeds in by_rate.items()}
        chosen[percent] = max(score, key=lambda rate: (np.nan_to_num(score[rate], nan=-1.0), len(by_rate[rate]), -rate))
    return chosen


def at_best_rates(runs: Sequence[Run]) -> list[Run]:
    """Those runs of one mask family that have their level's best learning rate."""
    rates = best_rates(runs)
    return [run for run in runs if (run.config.lr.value or 0) == rates[run.config.sparsity.percent]]
