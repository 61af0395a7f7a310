"""Group-relative advantages (paper section 2.1)."""

import torch

from mth.config.choices import Advantage

SAME_REWARD = 1e-12  # rewards lie in [0, 1]: rounding moves a mean of turns by about 1e-16, other replies by far more than this


def group_advantages(rewards: torch.Tensor, kind: Advantage) -> torch.Tensor:
    """Advantages [P, G] of rewards [P, G]: P prompts with G completions each.

    standardized: (R - mean) / std with the group's population standard deviation. centered: R - mean.
    A group without signal gets exact zeros, never NaN.
    """
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if kind is Advantage.standardized:
        advantages = advantages / rewards.std(dim=1, keepdim=True, correction=0)
    return torch.where(no_signal(rewards).unsqueeze(1), torch.zeros_like(rewards), advantages)


def no_signal(rewards: torch.Tensor) -> torch.Tensor:
    """[P] True for groups whose rewards [P, G] are all equal up to rounding."""
    return rewards.amax(dim=1) - rewards.amin(dim=1) <= SAME_REWARD
