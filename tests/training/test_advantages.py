"""Group-relative advantages against numbers worked out by hand."""

import math

import pytest
import torch

from mth.config.choices import Advantage
from mth.training.advantages import group_advantages, no_signal


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    centered = group_advantages(rewards, Advantage.centered)
    assert centered.tolist() == [[0.5, -0.5, -0.5, 0.5], [-0.25, -0.25, -0.25, 0.75]]
    standardized = group_advantages(rewards, Advantage.standardized)
    assert standardized[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    std = math.sqrt(0.1875)
    torch.testing.assert_close(standardized[1], torch.tensor([-0.25 / std] * 3 + [0.75 / std], dtype=torch.float64))


@pytest.mark.parametrize("kind", list(Advantage))
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1 / 3])
def test_equal_rewards_give_exact_zeros(kind, value):
    rewards = torch.full((2, 7), value)
    assert torch.equal(group_advantages(rewards, kind), torch.zeros(2, 7))
    assert no_signal(rewards).all()
