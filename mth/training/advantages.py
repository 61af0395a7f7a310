"""Group-relative advantages (paper section 2.1)."""

import torch

from mth.config.choices import Advantage


def group_advantages(rewards: torch.Tensor, kind: Advantage) -> torch.Tensor:
    """Advantages [P, G] of rewards [P, G]: P prompts with G completions each.

    standardized: (R - mean) / std with the group's population standard deviation. centered: R - mean.
    A group of equal rewards carries no signal and gets exact zeros, never NaN.
    """
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if kind is Advantage.standardized:
        advantages = advantages / rewards.std(dim=1, keepdim=True, correction=0)
    return torch.where(no_signal(rewards).unsqueeze(1), torch.zeros_like(rewards), advantages)


def no_signal(rewards: torch.Tensor) -> torch.Tensor:
    """[P] True for groups whose rewards [P, G] are all equal."""
    return rewards.amax(dim=1) == rewards.amin(dim=1)
