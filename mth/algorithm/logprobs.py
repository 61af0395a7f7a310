"""Log-probabilities of chosen tokens without a [tokens, vocabulary] tensor for the whole batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK_ELEMENTS = 2**24  # logits held at a time: 64 MiB in fp32


@dataclass(frozen=True)
class Layout:
    """Rows that hold several sequences with a common beginning. positions [B, T]: of each token in its own sequence.

    previous [B, T]: where in the row the token before it stands. attention [B, 1, T, T]: True where a token sees another.
    """

    positions: torch.Tensor
    previous: torch.Tensor
    attention: torch.Tensor


class _Chosen(torch.autograd.Function):
    """log softmax(logits)[targets] and entropy [N] of fp32 logits [N, V], which it overwrites: two [N, V] tensors live at the peak."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> Any:
        logits.sub_(logits.amax(1, keepdim=True))
        probabilities = logits.exp()
        total = probabilities.sum(1, keepdim=True)
        probabilities.div_(total)
        normalizer = total.squeeze(1).log()
        chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - normalizer
        entropy = normalizer - logits.mul_(probabilities).sum(1)
        ctx.save_for_backward(probabilities, targets)
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        probabilities, targets = ctx.saved_tensors
        gradient = probabilities.mul_(-grads[0].unsqueeze(1))
        return gradient.scatter_add_(1, targets.unsqueeze(1), grads[0].unsqueeze(1)), None


def _chunk(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head(hidden).float()
    return _Chosen.apply(logits if temperature == 1 else logits / temperature, targets)


def chosen_logprobs(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(head(hidden) / temperature)[targets] and the entropy of that distribution, both fp32 [N].

    hidden [N, H] predicts targets [N]. Works in chunks, recomputed in backward when there is more than one. The entropy (nats) carries no gradient.
    """
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    rows -= rows % 16 if rows > 16 else 0  # matrix products like whole cache lines
    if hidden.shape[0] <= rows:
        return _chunk(head, hidden, targets, temperature)
    parts = [
        checkpoint(_chunk, head, h, t, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def completion_logprobs(
    model: PreTrainedModel, ids: torch.Tensor, loss_mask: torch.Tensor, temperature: float, layout: Layout | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies [N] of the N tokens that `loss_mask` marks, row by row.

    ids [B, T], padded on the right; loss_mask [B, T], True at tokens the model sampled (never at position 0). Causal attention makes
    padding on the right invisible to real tokens, so without a layout no attention mask is passed and the fast kernels apply.
    """
    places = {} if layout is None else {"position_ids": layout.positions, "attention_mask": layout.attention}
    hidden = model.base_model(input_ids=ids, use_cache=False, **places).last_hidden_state  # [B, T, H]
    row, place = loss_mask.nonzero(as_tuple=True)
    previous = place - 1 if layout is None else layout.previous[row, place]
    # Sequences with a common beginning read one row of `hidden`. Backward of hidden[...] would add their gradients in the order of the threads.
    source = hidden.flatten(0, 1).index_select(0, row * hidden.shape[1] + previous)
    head = model.get_output_embeddings()
    return chosen_logprobs(head, source, ids[loss_mask], temperature, head.weight.shape[0])
