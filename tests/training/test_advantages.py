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


@pytest.mark.parametrize("kind", list(Advantage))
def test_rewards_that_differ_by_rounding_only_are_equal(kind):
    """Means of the same three turns in another order differ in the last bit; divided by their std they would be a full signal."""
    turns = [0.1, 0.7, 0.4]
    means = [sum(order) / 3 for order in (turns, turns[::-1], turns, turns)]
    assert len(set(means)) == 2
    rewards = torch.tensor([means, [0.5, 0.5 + 1e-9, 0.5, 0.5]], dtype=torch.float64)
    assert no_signal(rewards).tolist() == [True, False]
    assert torch.equal(group_advantages(rewards, kind)[0], torch.zeros(4, dtype=torch.float64))
    assert group_advantages(rewards, kind)[1].abs().min() > 0
