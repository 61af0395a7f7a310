"""The policy loss against numbers worked out by hand."""

import math

import pytest
import torch

from mth.config.choices import Ratio
from mth.config.schema import AlgorithmConfig
from mth.training.losses import RATIO_RULES, kl_estimate, policy_loss


def loss_of(ratios, advantages, config, **kwargs):
    old = torch.zeros(len(ratios))
    new = torch.tensor(ratios).log().requires_grad_()
    loss, sums = policy_loss(new, old, torch.tensor(advantages), config, len(ratios), **kwargs)
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.item(), gradient.tolist(), sums


def test_clipped_loss_by_hand():
    loss, gradient, sums = loss_of([1.0, 1.5, 1.5, 0.5, 0.5], [2.0, 1.0, -1.0, 1.0, -1.0], AlgorithmConfig(clip_eps=0.2))
    # min(rA, clip(r)A) is 2, 1.2, -1.5, 0.5, -0.8
    assert loss == pytest.approx(-(2.0 + 1.2 - 1.5 + 0.5 - 0.8) / 5)
    assert gradient == pytest.approx([-2 / 5, 0.0, 1.5 / 5, -0.5 / 5, 0.0], abs=1e-6)
    assert sums["ratio_limited"].item() == 2
    assert sums["ratio"].item() == pytest.approx(5.0)


def test_dropping_loss_by_hand():
    config = AlgorithmConfig(ratio=Ratio.drop)
    loss, gradient, sums = loss_of([1.0, 9.0, 0.1, 4.0], [1.0, 1.0, 1.0, -0.5], config)
    assert loss == pytest.approx(-(1.0 - 2.0) / 4)
    assert gradient == pytest.approx([-0.25, 0.0, 0.0, 0.5])
    assert sums["ratio_limited"].item() == 2


def test_kl_penalty_by_hand():
    ref = torch.tensor([0.5]).log()
    loss, gradient, sums = loss_of([1.0], [0.0], AlgorithmConfig(kl_coef=0.1), ref_logprobs=ref)
    expected = 0.5 - math.log(0.5) - 1
    assert loss == pytest.approx(0.1 * expected)
    assert gradient == pytest.approx([0.1 * (1 - 0.5)])
    assert sums["kl_reference"].item() == pytest.approx(expected)


def test_kl_estimate_is_unbiased_for_the_sampler():
    sampler, other = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    expected = (sampler * (sampler / other).log()).sum()
    torch.testing.assert_close((sampler * kl_estimate(sampler.log(), other.log())).sum(), expected)


def test_every_choice_of_the_ratio_has_a_rule():
    assert set(RATIO_RULES) == set(Ratio)


def test_a_ratio_on_the_bound_is_kept():
    """The interval [drop_low, drop_high] has its ends."""
    config = AlgorithmConfig(drop_low=0.125, drop_high=8.0)
    ratio = torch.tensor([0.125, 8.0, 0.124, 8.1])
    loss, dropped = RATIO_RULES[Ratio.drop](ratio, torch.ones(4), config)
    assert dropped.tolist() == [False, False, True, True]
    assert loss.tolist() == [-0.125, -8.0, 0.0, 0.0]


def test_parts_of_a_batch_add_up_to_its_loss():
    ratios, advantages = [1.0, 1.5, 0.7, 0.5, 1.1], [1.0, -2.0, 0.5, -1.0, 3.0]
    whole, _, _ = loss_of(ratios, advantages, AlgorithmConfig())
    parts = []
    for piece in (slice(0, 2), slice(2, 5)):
        new = torch.tensor(ratios[piece]).log()
        parts.append(policy_loss(new, torch.zeros_like(new), torch.tensor(advantages[piece]), AlgorithmConfig(), 5)[0].item())
    assert sum(parts) == pytest.approx(whole)
