"""Standard errors over prompts in the report: paired, and kept with published runs."""

import math

import numpy as np
import pytest

from mth.analysis.aggregate import tidy_frame
from mth.analysis.collection import Run
from mth.analysis.errors import change_error, curve, difference_error, error, results
from mth.analysis.frame import read_frame, write_frame
from mth.config.identity import identity
from mth.runs.journal import Entry
from mth.runs.summary import Summary, changes
from mth.runs.summary import results as summary_results
from tests.conftest import make_config

KEY, TASK = "eval/arithmetic/pass_at_1", "arithmetic"


def run_of(name, *evaluations, seed=0, kept=True):
    """A run with an evaluation every ten steps. evaluations: rewards of all prompts."""
    config = make_config(mask_seed=seed)
    entries = [
        Entry(10 * i, 0, {KEY: float(np.mean(rewards)), "eval/arithmetic/reward": float(np.mean(rewards))}, {TASK: rewards} if kept else {})
        for i, rewards in enumerate(evaluations)
    ]
    return Run(name, config, identity(config), "finished", "", "", Summary(), entries)


BEFORE = [0.0, 1.0, 0.0, 1.0, 0.0]
LEFT, RIGHT = run_of("a", BEFORE, [1.0, 1.0, 0.0, 1.0, 0.0]), run_of("b", BEFORE, [1.0, 1.0, 1.0, 1.0, 0.0], seed=1)


def sem(values):
    return np.std(values, ddof=1) / math.sqrt(len(values))


def test_errors_of_one_run_and_of_a_mean_over_runs():
    assert error([LEFT], KEY) == pytest.approx(sem([1, 1, 0, 1, 0]))
    assert error([LEFT], KEY, 0) == pytest.approx(sem(BEFORE))
    assert results([LEFT, RIGHT], KEY)["error"] == pytest.approx(sem([1, 1, 0.5, 1, 0]))
    assert results([LEFT, RIGHT], KEY)["mean"] == pytest.approx(0.7)


def test_differences_are_paired():
    assert difference_error([LEFT], [RIGHT], KEY) == pytest.approx(sem([0, 0, 1, 0, 0]))
    assert difference_error([LEFT], [RIGHT], KEY) < error([LEFT], KEY)
    assert change_error([LEFT], KEY) == pytest.approx(sem([1, 0, 0, 0, 0]))
    assert difference_error([LEFT], [LEFT], KEY) == 0


def test_what_is_not_known_is_not_made_up():
    old = run_of("old", BEFORE, BEFORE, kept=False)
    assert error([old], KEY) == pytest.approx(math.sqrt(0.4 * 0.6 / (old.config.eval.samples - 1)))  # a share and its count are enough
    assert all(math.isnan(value) for value in (error([old], "eval/arithmetic/reward"), change_error([old], KEY), error([old, LEFT], KEY)))
    assert math.isnan(difference_error([LEFT], [run_of("fewer", BEFORE[:4])], KEY))


def test_the_band_of_a_curve():
    single, several = curve([LEFT], KEY), curve([LEFT, RIGHT], KEY)
    assert single["band"].tolist() == pytest.approx([math.sqrt(0.4 * 0.6 / 15), math.sqrt(0.6 * 0.4 / 15)])  # of 16 samples
    assert several["band"].tolist() == pytest.approx([0.0, np.std([0.6, 0.8], ddof=1)])
    assert curve([], KEY).empty


def test_a_published_frame_keeps_first_and_last_rewards(tmp_path):
    long = run_of("a", BEFORE, [0.0] * 5, [1.0, 1.0, 0.25, 1.0, 0.0])
    write_frame([long], tidy_frame([long]), tmp_path)
    (again,) = read_frame(tmp_path).runs
    assert [entry.rewards for entry in again.entries] == [{TASK: BEFORE}, {}, {TASK: [1.0, 1.0, 0.25, 1.0, 0.0]}]
    assert error([again], "eval/arithmetic/reward") == error([long], "eval/arithmetic/reward")


def test_a_summary_pairs_first_and_last():
    entries = [*LEFT.entries[:1], Entry(5, 0, {"reward/mean": 0.5}), *LEFT.entries[1:]]
    assert changes(entries, [TASK]) == {
        TASK: {
            "pass_at_1": pytest.approx(0.2),
            "pass_at_1_error": pytest.approx(0.2),
            "reward": pytest.approx(0.2),
            "reward_error": pytest.approx(0.2),
        }
    }
    assert changes(entries[:2], [TASK]) == {}
    assert summary_results(entries, -1, [TASK]) == {TASK: {"pass_at_1": 0.6, "reward": 0.6}}
