"""When a run counts as collapsed."""

import math

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
    assert "entropy rose" in reason([0.5] * 9, [0.2] * 6 + [1.0] * 3)
    assert "entropy fell" in reason([0.5] * 6 + [0.3] * 3, [0.2] * 6 + [1e-6] * 3)
    assert reason([0.5] * 6 + [0.9] * 3, [0.2] * 6 + [1e-6] * 3) is None  # certain and better than ever
    assert reason([0.6, 0.1, 0.1]) is None  # too short to judge
