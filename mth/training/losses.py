"""The importance-weighted policy loss per token, with a clipped ratio or with tokens dropped (paper, section 2.1, equation 1)."""

from collections.abc import Callable
from functools import cache

import torch

from mth.config.choices import Ratio
from mth.config.schema import AlgorithmConfig
from mth.foundations.errors import require
from mth.foundations.user_code import guarded, load, parse

KEY = "algorithm.source"
# rule(ratio [N], advantages [N], config) -> loss per token [N], and [N] True where the ratio was limited.
Rule = Callable[[torch.Tensor, torch.Tensor, AlgorithmConfig], tuple[torch.Tensor, torch.Tensor]]


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
    `config.source` or `config.ratio` selects the rule: see `clipped_loss` and `dropped_loss`. `config.kl_coef` weights `kl_estimate` of KL(policy || reference).
    """
    log_ratio = policy_logprobs - old_logprobs
    ratio = log_ratio.exp()
    per_token, limited = ratio_rule(config)(ratio, advantages, config)
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


RATIO_RULES: dict[Ratio, Rule] = {
    Ratio.clip: clipped_loss,
    Ratio.drop: dropped_loss,
}


def ratio_rule(config: AlgorithmConfig) -> Rule:
    """The rule of a configuration: the user's own, or one of RATIO_RULES."""
    return RATIO_RULES[config.ratio] if config.source is None else own_rule(config.source)


@cache
def own_rule(source: str) -> Rule:
    """The rule of the user's own code, tried once. Raises UserError, in one line, where it fails or gives something else than a rule does."""
    rule, where = load(source, KEY), f"{KEY}={parse(source, KEY).shown}"
    require(callable(rule), f"{where} is no function: def {parse(source, KEY).name}(ratio, advantages, config)")

    def checked(ratio: torch.Tensor, advantages: torch.Tensor, config: AlgorithmConfig) -> tuple[torch.Tensor, torch.Tensor]:
        with guarded(source, KEY):
            found = rule(ratio, advantages, config)
        good = isinstance(found, tuple) and len(found) == 2 and all(torch.is_tensor(part) and part.shape == ratio.shape for part in found)
        require(good, f"{where} must return two tensors [N] for ratios [N]: the loss of each token, and whether its ratio was limited")
        return found

    ratio, advantages = torch.tensor([0.5, 1.0, 2.0], requires_grad=True), torch.tensor([1.0, -1.0, 0.5])
    loss, _ = checked(ratio, advantages, AlgorithmConfig())
    gradient = torch.autograd.grad(loss.sum(), ratio, allow_unused=True)[0] if loss.requires_grad else None
    require(gradient is not None, f"{where}: its loss does not depend on the ratio, so nothing would be trained; compute it from `ratio`")
    require(bool(torch.isfinite(loss).all()), f"{where}: its loss is not finite for the ratios 0.5, 1 and 2")
    return checked


def needs_every_group(config: AlgorithmConfig) -> bool:
    """Whether tokens whose advantage is 0 have a gradient: under a KL penalty, or by a rule of the user's own."""
    if config.kl_coef > 0 or config.source is None:
        return config.kl_coef > 0
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0], requires_grad=True)
    loss, _ = ratio_rule(config)(ratio, torch.zeros(5), config)
    gradient = torch.autograd.grad(loss.sum(), ratio, allow_unused=True)[0] if loss.requires_grad else None
    return gradient is not None and bool(gradient.any())


def kl_estimate(sampler_logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(sampler || other) per token [N], for tokens drawn from the sampler: exp(d) - d - 1 with d = log other - log sampler.

    Never negative, and unbiased.
    """
    difference = other_logprobs - sampler_logprobs
    return difference.exp() - difference - 1
