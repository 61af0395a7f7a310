"""Chooses the learning rate of each sparsity by the reward on training prompts, never by the held-out results that are reported."""

from collections.abc import Sequence

import numpy as np

from mth.analysis.aggregate import series
from mth.analysis.collection import Run
from mth.runs.metrics import REWARD

SELECTION_STEPS = 10  # last training steps whose reward chooses a learning rate


def selection_score(run: Run) -> float:
    """Mean reward of the last SELECTION_STEPS training steps; NaN if there are none."""
    values = series(run, REWARD)
    return float(values.iloc[-SELECTION_STEPS:].mean()) if len(values) else float("nan")


def best_rates(runs: Sequence[Run]) -> dict[float, float]:
    """Sparsity -> learning rate with the highest mean `selection_score` over the seeds, of mask and training, that all rates of the level have.

    Among equal scores, as where nothing learns, the rate with more masks wins, then the lower rate.
    """
    chosen = {}
    for percent in sorted({run.sparsity for run in runs}):
        by_rate: dict[float, dict[tuple[int, int], float]] = {}
        for run in runs:
            if run.sparsity == percent:
                by_rate.setdefault(run.lr, {})[run.config.mask_seed, run.config.seed.train] = selection_score(run)
        common = set.intersection(*map(set, by_rate.values()))
        score = {rate: np.mean([value for seed, value in seeds.items() if seed in common or not common]) for rate, seeds in by_rate.items()}
        chosen[percent] = max(score, key=lambda rate: (np.nan_to_num(score[rate], nan=-1.0), len(by_rate[rate]), -rate))
    return chosen


def at_best_rates(runs: Sequence[Run]) -> list[Run]:
    """The runs that have the best learning rate of their sparsity. runs: of one mask family."""
    rates = best_rates(runs)
    return [run for run in runs if run.lr == rates[run.sparsity]]
