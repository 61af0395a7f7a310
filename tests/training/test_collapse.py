"""When a run counts as collapsed."""

import math

import pytest

from mth.config.schema import CollapseConfig
from mth.training.collapse import collapse_reason

RULE = CollapseConfig(window=3)


def reason(rewards, entropies=None, **latest):
    return collapse_reason(rewards, entropies or [0.5] * len(rewards), {"loss": 0.1} | latest, RULE)


def test_collapse_rules():
    assert reason([0.5] * 20) is None
    assert "loss is nan" in reason([0.5], loss=math.nan)
    assert "reward of the last 3 steps" in reason([0.6] * 6 + [0.1] * 3)
    assert reason([0.6] * 6 + [0.4] * 3) is None
    assert reason([0.01] * 6 + [0.0] * 3) is None  # a run that never learned has not collapsed
    assert "entropy rose to 1.000 from 0.200" in reason([0.5] * 6 + [0.4] * 3, [0.2] * 6 + [1.0] * 3)
    assert "entropy fell" in reason([0.5] * 6 + [0.3] * 3, [0.2] * 6 + [1e-6] * 3)
    assert reason([0.5] * 6 + [0.9] * 3, [0.2] * 6 + [1e-6] * 3) is None  # certain and better than ever
    assert reason([0.6, 0.1, 0.1]) is None  # too short to judge


def test_entropy_that_rises_with_the_reward_is_no_collapse():
    """A policy that starts certain explores while it learns, or at the same reward."""
    assert reason([0.3 + 0.05 * step for step in range(9)], [0.005] * 6 + [0.05] * 3) is None
    assert reason([0.5] * 9, [0.005] * 6 + [0.05] * 3) is None


def test_the_bounds_of_the_rules():
    """Each rule just inside and just outside."""
    assert reason([0.6] * 3 + [0.29] * 3) is not None  # six steps suffice
    assert reason([0.6] * 3 + [0.29] * 2) is None
    assert reason([0.6] * 3 + [0.31] * 3) is None
    assert reason([0.03] * 3 + [0.0] * 3) is not None
    assert reason([0.019] * 3 + [0.0] * 3) is None
    assert reason([0.5] * 3 + [0.44] * 3, [0.2] * 3 + [0.81] * 3) is not None
    assert reason([0.5] * 3 + [0.44] * 3, [0.2] * 3 + [0.79] * 3) is None
    assert reason([0.5] * 3 + [0.46] * 3, [0.2] * 3 + [0.81] * 3) is None
    assert reason([0.5] * 3 + [0.44] * 3, [0.2] * 3 + [0.9e-4] * 3) is not None
    assert reason([0.5] * 3 + [0.44] * 3, [0.2] * 3 + [1.1e-4] * 3) is None


@pytest.mark.parametrize("key", ["loss", "grad_norm", "reward/mean", "entropy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_ends_every_run(key, value):
    assert collapse_reason([0.5], [0.5], {key: value}, RULE) == f"{key} is {value}"


def test_entropy_is_compared_with_the_mean_of_the_first_window():
    """Not with the first step, which may be an odd one: the first window's mean is 0.4 here."""
    assert reason([0.5] * 3 + [0.4] * 3, [0.1, 0.5, 0.6, *[1.5] * 3]) is None
    assert reason([0.5] * 3 + [0.4] * 3, [0.9, 0.1, 0.2, *[1.7] * 3]) is not None
