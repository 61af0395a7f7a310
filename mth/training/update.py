"""One optimizer step from a batch of rollouts: micro-batches, loss, backward into the ticket, clipping, write-back."""

import math
from collections.abc import Callable
from functools import partial

import torch

from mth.config.choices import Logprobs
from mth.config.schema import Config
from mth.models.load import Policy
from mth.tickets.sampled_gradients import sampled_gradients
from mth.tickets.ticket import Ticket
from mth.training.batches import MicroBatch
from mth.training.logprobs import completion_backward, completion_logprobs
from mth.training.losses import kl_estimate, policy_loss


def reference_logprobs(policy: Policy, ticket: Ticket, batches: list[MicroBatch], base_values: torch.Tensor, temperature: float) -> None:
    """Fill in log-probabilities under the base model. Its active entries are swapped in during the call, and back afterwards."""
    with torch.no_grad(), ticket.swapped(base_values):
        for batch in batches:
            batch.ref_logprobs, _ = completion_logprobs(policy.model, batch.ids, batch.loss_mask, temperature, batch.layout)


def chunk_loss(
    batch: MicroBatch,
    tokens: int,
    config: Config,
    sums: dict[str, torch.Tensor],
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    piece: slice,
) -> torch.Tensor:
    """Scalar loss of a chunk of a micro-batch's tokens. Adds what the log needs to `sums`, and the entropies to the batch.

    tokens: sampled tokens of the whole step, by which the loss is divided. logprobs, entropy [n]: of the chunk's tokens. piece: their place.
    """
    batch.entropies.append(entropy)
    rollout, now = batch.rollout_logprobs[piece], logprobs.detach()
    reference = None if batch.ref_logprobs is None else batch.ref_logprobs[piece]
    # One optimizer step per batch: recomputed old log-probabilities are the current ones, without their gradient.
    old = now if config.rollout.logprobs is Logprobs.recompute else rollout
    loss, parts = policy_loss(logprobs, old, batch.advantages[piece], config.algorithm, tokens, reference)
    gap = (now - rollout).abs()
    parts["kl_rollout"] = kl_estimate(rollout, now).sum()
    parts |= {"loss": loss.detach() * tokens, "entropy": entropy.sum(), "mismatch/mean": gap.sum()}
    for key, value in parts.items():
        sums[key] = sums.get(key, torch.zeros_like(value)) + value
    sums["mismatch/max"] = torch.maximum(sums.get("mismatch/max", gap.max()), gap.max())
    return loss


def update(
    policy: Policy,
    ticket: Ticket,
    optimizer: torch.optim.Optimizer,
    batches: list[MicroBatch],
    tokens: int,
    config: Config,
    base_values: torch.Tensor | None = None,
    observe: Callable[[torch.Tensor], None] | None = None,
) -> dict[str, float]:
    """Accumulate the gradient of all micro-batches, clip it, step, and write the ticket into the model. Returns the step's metrics.

    tokens: sampled tokens of the whole step, by which the loss is divided; the batches may lack those that add nothing to the gradient.
    observe: called with the flat gradient [K] before clipping; it may not change it.
    Skips the update if the gradient is not finite, so the last good weights survive.
    """
    temperature = config.rollout.temperature
    trained = sum(batch.rollout_logprobs.numel() for batch in batches)
    if config.algorithm.kl_coef > 0:
        assert base_values is not None
        reference_logprobs(policy, ticket, batches, base_values, temperature)
    sums: dict[str, torch.Tensor] = {}
    policy.model.train(config.model.activation_checkpointing)  # transformers checkpoints activations in training mode only
    ticket.zero_gradient()
    with sampled_gradients(policy.model, ticket):
        for batch in batches:
            batch.entropies.clear()
            loss = partial(chunk_loss, batch, tokens, config, sums)
            completion_backward(policy.model, batch.ids, batch.loss_mask, temperature, loss, batch.layout)
    policy.model.eval()
    norm = ticket.finish_gradient()
    grad_norm = norm.item()
    if observe is not None:
        assert ticket.values.grad is not None
        observe(ticket.values.grad)
    applied = math.isfinite(grad_norm)
    sums["moved"] = torch.zeros_like(norm)
    if applied:
        assert ticket.values.grad is not None
        ticket.values.grad.mul_((config.optimizer.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        before = ticket.values.detach().clone()
        optimizer.step()
        ticket.write()
        sums["moved"] = before.sub_(ticket.values.detach()).norm()
    figures = _to_host(sums)
    means = {key: value / trained for key, value in figures.items()}
    return {
        "loss": figures["loss"] / tokens,
        "entropy": means["entropy"],
        "ratio/mean": means["ratio"],
        "ratio/limited_share": means["ratio_limited"],
        "kl/rollout": means["kl_rollout"],
        **({"kl/reference": means["kl_reference"]} if "kl_reference" in means else {}),
        "mismatch/mean": means["mismatch/mean"],
        "mismatch/max": figures["mismatch/max"],
        "grad_norm": grad_norm,
        "update/left_out_share": 1 - trained / tokens,
        "update_norm": figures["moved"],
        "update_applied": float(applied),
        "learning_rate": optimizer.param_groups[0]["lr"],
    }


def _to_host(scalars: dict[str, torch.Tensor]) -> dict[str, float]:
    """The values of scalars on the device, which is waited for once."""
    return dict(zip(scalars, torch.stack([value.double() for value in scalars.values()]).tolist(), strict=True))
