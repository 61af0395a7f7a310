"""The learning rate of a level: highest reward on the last training prompts, on masks that all its rates have."""

import math

import pytest

from mth.analysis.collection import Run
from mth.analysis.rates import SELECTION_STEPS, at_best_rates, best_rates, selection_score
from mth.config.identity import identity
from mth.runs.journal import Entry
from mth.runs.summary import Summary
from tests.conftest import make_config


def run_of(rate, seed, rewards, percent=99):
    rewards = rewards if isinstance(rewards, list) else [rewards]
    config = make_config(lr={"value": rate}, mask_seed=seed, sparsity={"percent": percent})
    entries = [Entry(step, 0, {"reward/mean": reward}) for step, reward in enumerate(rewards, 1)]
    return Run(f"{rate} {seed} {percent}", config, identity(config), "finished", "", "", Summary(), entries)


def test_the_score_is_the_mean_of_the_last_ten_steps():
    assert SELECTION_STEPS == 10
    assert selection_score(run_of(0.1, 0, [1.0] * 3 + [0.25] * 5 + [0.75] * 5)) == 0.5
    assert selection_score(run_of(0.1, 0, [0.5, 1.0])) == 0.75
    assert math.isnan(selection_score(run_of(0.1, 0, [])))


def test_rates_are_compared_on_the_masks_that_all_of_them_have():
    """Mask 1 is a lucky one that only the smaller rate was run with."""
    runs = [run_of(0.1, 0, 0.6), run_of(0.01, 0, 0.5), run_of(0.01, 1, 0.9)]
    assert best_rates(runs) == {99: 0.1}
    assert best_rates([run_of(0.1, 0, 0.6), run_of(0.01, 1, 0.9)]) == {99: 0.01}  # without a common mask all of them count
    levels = [*runs, run_of(0.1, 0, 0.2, 90), run_of(0.01, 0, 0.3, 90)]
    assert best_rates(levels) == {90: 0.01, 99: 0.1}
    assert [run.name for run in at_best_rates(levels)] == ["0.1 0 99", "0.01 0 90"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_equal_scores_more_masks_win_and_then_the_lower_rate(order):
    equal = [run_of(rate, 0, 0.5) for rate in (0.1, 0.01, 0.001)][::order]
    assert best_rates(equal) == {99: 0.001}
    assert best_rates([*equal, run_of(0.1, 1, 0.5)]) == {99: 0.1}


def test_a_rate_without_rewards_never_wins():
    assert best_rates([run_of(0.1, 0, []), run_of(0.2, 0, 0.0)]) == {99: 0.2}
    assert best_rates([run_of(0.1, 0, math.nan), run_of(0.2, 0, 0.0)]) == {99: 0.2}
