"""One optimizer step from a batch of rollouts: micro-batches, loss, backward into the ticket, clipping, write-back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mth.algorithm.logprobs import completion_logprobs
from mth.algorithm.losses import kl_estimate, policy_loss
from mth.config import Config, Logprobs, OptimizerConfig, OptimizerName
from mth.policy import Policy
from mth.rollout.conversation import Rollout
from mth.tickets.ticket import Ticket


@dataclass
class MicroBatch:
    """ids, loss_mask [B, T], padded on the right; the rest [N], one entry per sampled token, row by row."""

    ids: torch.Tensor
    loss_mask: torch.Tensor
    rollout_logprobs: torch.Tensor
    advantages: torch.Tensor
    ref_logprobs: torch.Tensor | None = None


def build_optimizer(ticket: Ticket, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """A stock torch optimizer over the ticket's one flat parameter; frozen entries have no state and no decay."""
    shared: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name is OptimizerName.sgd:
        return torch.optim.SGD([ticket.values], momentum=config.momentum, **shared)
    kind = torch.optim.AdamW if config.name is OptimizerName.adamw else torch.optim.Adam
    return kind([ticket.values], betas=(config.beta1, config.beta2), eps=config.eps, **shared)


def collate(rollouts: Sequence[Rollout], advantages: Sequence[float], token_budget: int, device: torch.device) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` padded tokens (one rollout at least), longest rollouts first so that padding is short."""
    order = sorted(range(len(rollouts)), key=lambda i: (-len(rollouts[i].ids), i))
    batches, start = [], 0
    while start < len(order):
        width = len(rollouts[order[start]].ids)
        chosen = order[start : start + max(1, token_budget // width)]
        start += len(chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros(len(chosen), width, dtype=torch.bool)
        logprobs, weights = [], []
        for row, index in enumerate(chosen):
            rollout = rollouts[index]
            ids[row, : len(rollout.ids)] = torch.tensor(rollout.ids)
            mask[row, : len(rollout.ids)] = torch.tensor(rollout.loss_mask)
            logprobs += [p for p, said in zip(rollout.logprobs, rollout.loss_mask, strict=True) if said]
            weights += [advantages[index]] * rollout.completion_tokens
        batches.append(
            MicroBatch(ids.to(device), mask.to(device), torch.tensor(logprobs, device=device), torch.tensor(weights, device=device))
        )
    return batches


def reference_logprobs(policy: Policy, ticket: Ticket, batches: list[MicroBatch], base_values: torch.Tensor, temperature: float) -> None:
    """Fill in log-probabilities under the base model, whose active entries are swapped in for the time of the call."""
    with torch.no_grad(), ticket.swapped(base_values):
        for batch in batches:
            batch.ref_logprobs, _ = completion_logprobs(policy.model, batch.ids, batch.loss_mask, temperature)


def update(
    policy: Policy,
    ticket: Ticket,
    optimizer: torch.optim.Optimizer,
    batches: list[MicroBatch],
    config: Config,
    base_values: torch.Tensor | None = None,
    observe: Callable[[torch.Tensor], None] | None = None,
) -> dict[str, float]:
    """Accumulate the gradient of all micro-batches, clip it, step, and write the ticket into the model. Returns the step's metrics.

    observe: sees the flat gradient [K] before clipping, and does not change it.
    A gradient that is not finite is reported and not applied, so that a collapsed run keeps its last good weights.
    """
    temperature = config.rollout.temperature
    tokens = sum(batch.rollout_logprobs.numel() for batch in batches)
    if config.algorithm.kl_coef > 0:
        assert base_values is not None
        reference_logprobs(policy, ticket, batches, base_values, temperature)
    sums: dict[str, torch.Tensor] = {}
    policy.model.train(config.model.activation_checkpointing)  # transformers checkpoints activations in training mode only
    ticket.zero_gradient()
    for batch in batches:
        logprobs, entropy = completion_logprobs(policy.model, batch.ids, batch.loss_mask, temperature)
        gap = (logprobs.detach() - batch.rollout_logprobs).abs()
        # One optimizer step per batch: recomputed old log-probabilities are the current ones, without their gradient.
        old = logprobs.detach() if config.rollout.logprobs is Logprobs.recompute else batch.rollout_logprobs
        loss, parts = policy_loss(logprobs, old, batch.advantages, config.algorithm, tokens, batch.ref_logprobs)
        loss.backward()
        parts["kl_rollout"] = kl_estimate(batch.rollout_logprobs, logprobs.detach()).sum()
        parts |= {"loss": loss.detach() * tokens, "entropy": entropy.sum(), "mismatch/mean": gap.sum()}
        for key, value in parts.items():
            sums[key] = sums.get(key, torch.zeros_like(value)) + value
        sums["mismatch/max"] = torch.maximum(sums.get("mismatch/max", gap.max()), gap.max())
    policy.model.eval()
    norm = ticket.finish_gradient()
    if observe is not None:
        assert ticket.values.grad is not None
        observe(ticket.values.grad)
    applied = bool(torch.isfinite(norm))
    moved = torch.zeros(())
    if applied:
        assert ticket.values.grad is not None
        ticket.values.grad.mul_((config.optimizer.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        before = ticket.values.detach().clone()
        optimizer.step()
        ticket.write()
        moved = (ticket.values.detach() - before).norm()
    largest = sums.pop("mismatch/max").item()
    means = {key: value.item() / tokens for key, value in sums.items()}
    return {
        "loss": means["loss"],
        "entropy": means["entropy"],
        "ratio/mean": means["ratio"],
        "ratio/limited_share": means["ratio_limited"],
        "kl/rollout": means["kl_rollout"],
        **({"kl/reference": means["kl_reference"]} if "kl_reference" in means else {}),
        "mismatch/mean": means["mismatch/mean"],
        "mismatch/max": largest,
        "grad_norm": norm.item(),
        "update_norm": moved.item(),
        "update_applied": float(applied),
        "learning_rate": optimizer.param_groups[0]["lr"],
    }
