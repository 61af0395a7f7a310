"""The importance-weighted policy loss per token, with a clipped ratio or with tokens dropped (paper, section 2.1, equation 1)."""

from collections.abc import Callable

import torch

from mth.config.choices import Ratio
from mth.config.schema import AlgorithmConfig


def policy_loss(
    policy_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    config: AlgorithmConfig,
    batch_tokens: int,
    ref_logprobs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scalar loss of N sampled tokens, and sums over these tokens for the log.

    All tensors are [N]; a token has the advantage of its completion. The loss is divided by `batch_tokens`, the number of sampled tokens in
    the whole batch, so micro-batches of any size add up to the same loss.
    `config.ratio` selects the rule: see `clipped_loss` and `dropped_loss`. `config.kl_coef` weights `kl_estimate` of KL(policy || reference).
    """
    log_ratio = policy_logprobs - old_logprobs
    ratio = log_ratio.exp()
    per_token, limited = RATIO_RULES[config.ratio](ratio, advantages, config)
    sums = {
        "ratio": ratio.detach().sum(),
        "ratio_limited": limited.sum(),
    }
    if ref_logprobs is not None:
        penalty = kl_estimate(policy_logprobs, ref_logprobs)
        per_token = per_token + config.kl_coef * penalty
        sums["kl_reference"] = penalty.detach().sum()
    return per_token.sum() / batch_tokens, sums


def clipped_loss(ratio: torch.Tensor, advantages: torch.Tensor, config: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """-min(r A, clip(r, 1 - clip_eps, 1 + clip_eps) A) per token [N], and [N] True where the clipped term is the smaller one."""
    clipped = ratio.clamp(1 - config.clip_eps, 1 + config.clip_eps)
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    return per_token, (ratio * advantages) > (clipped * advantages)


def dropped_loss(ratio: torch.Tensor, advantages: torch.Tensor, config: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """-r A per token [N], 0 where the ratio is outside [drop_low, drop_high], and [N] True at these dropped tokens."""
    dropped = (ratio < config.drop_low) | (ratio > config.drop_high)
    return torch.where(dropped, torch.zeros_like(ratio), -ratio * advantages), dropped


# rule(ratio [N], advantages [N], config) -> loss per token [N], and [N] True where the ratio was limited.
RATIO_RULES: dict[Ratio, Callable[[torch.Tensor, torch.Tensor, AlgorithmConfig], tuple[torch.Tensor, torch.Tensor]]] = {
    Ratio.clip: clipped_loss,
    Ratio.drop: dropped_loss,
}


def kl_estimate(sampler_logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(sampler || other) per token [N], for tokens drawn from the sampler: exp(d) - d - 1 with d = log other - log sampler.

    Never negative, and unbiased.
    """
    difference = other_logprobs - sampler_logprobs
    return difference.exp() - difference - 1
