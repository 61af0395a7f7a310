"""Log-probabilities of given tokens, computed in chunks: no [tokens, vocabulary] tensor of the whole batch exists."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mth.models.attention import running_attention
from mth.training.fused_head import compiled_head, fixed_rows, padded
from mth.training.lines import LINE_ATTENTION, Line

CHUNK_ELEMENTS = 2**24  # logits of a chunk on a CPU: 64 MiB in fp32
CHUNK_ELEMENTS_GPU = 2**28  # 1 GiB: fewer rows leave a GPU waiting for the weights (docs/gpu.md)


@dataclass(frozen=True)
class Layout:
    """Where tokens lie that are not one sequence a row: completions that share a prompt, or a line.

    positions [B, T]: each token's position within its own sequence. previous [B, T]: index, within the row, of the token before it.
    attention: a mask [B, 1, T, T], True where a token attends to another; or the pieces of a line, where B is 1.
    """

    positions: torch.Tensor
    previous: torch.Tensor
    attention: torch.Tensor | Line

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        return {"position_ids": self.positions, "line" if isinstance(self.attention, Line) else "attention_mask": self.attention}


class _Chosen(torch.autograd.Function):
    """log softmax(logits)[targets] and entropies, both [N], of fp32 logits [N, V]. Overwrites the logits; two [N, V] tensors exist at the peak."""

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


def chunk_rows(tokens: int, vocabulary: int, on_cpu: bool) -> int:
    """Rows of a chunk of `tokens` rows. Its logits have CHUNK_ELEMENTS elements at most, on a GPU CHUNK_ELEMENTS_GPU."""
    rows = max(1, (CHUNK_ELEMENTS if on_cpu else CHUNK_ELEMENTS_GPU) // vocabulary)
    rows -= rows % 16 if rows > 16 else 0  # whole cache lines make the matrix product faster
    return rows if on_cpu else fixed_rows(tokens, rows)


def chosen_logprobs(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(head(hidden) / temperature)[targets] and the entropy of that distribution in nats, both fp32 [N].

    hidden [N, H] predicts targets [N]. The entropy has no gradient. Overwrites the logits that the head returns.
    """
    logits = head(hidden).float()
    return _Chosen.apply(logits if temperature == 1 else logits / temperature, targets)


def chunked_logprobs(head: Any, hidden: torch.Tensor, temperature: float) -> tuple[list[slice], Any]:
    """Slices of hidden states [N, H], and a function of (hidden [n, H], targets [n]) that gives `chosen_logprobs` of one of them."""
    tokens = hidden.shape[0]
    rows = chunk_rows(tokens, head.weight.shape[0], hidden.device.type == "cpu")
    fused = compiled_head(head, hidden, temperature, rows)
    if fused is None:
        logprobs: Any = partial(_plain, head, temperature)
    else:
        logprobs = partial(padded, fused, head, temperature, rows)
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)], logprobs


def _plain(head: nn.Module, temperature: float, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return chosen_logprobs(head, hidden, targets, temperature)


def completion_logprobs(
    model: PreTrainedModel, ids: torch.Tensor, loss_mask: torch.Tensor, temperature: float, layout: Layout | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies [N] of the N tokens in `loss_mask`, row by row.

    ids [B, T], padded on the right. loss_mask [B, T]: True at sampled tokens, never at position 0. layout: for rows that are not one
    sequence. Causal attention never reaches padding on the right, so without a layout no attention mask is needed and the fast kernels
    apply. For gradients use `completion_backward`: backward through this function would keep all chunks of logits.
    """
    head, (hidden, targets) = model.get_output_embeddings(), _predicting(model, ids, loss_mask, layout)
    pieces, logprobs = chunked_logprobs(head, hidden, temperature)
    parts = [logprobs(hidden[piece], targets[piece]) for piece in pieces]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def completion_backward(
    model: PreTrainedModel,
    ids: torch.Tensor,
    loss_mask: torch.Tensor,
    temperature: float,
    loss: Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor],
    layout: Layout | None = None,
) -> None:
    """Backward of a loss that is a sum over the N tokens in `loss_mask`; arguments as in `completion_logprobs`.

    loss(log-probabilities [n], entropies [n], slice of the N tokens) returns the scalar loss of one chunk. Each chunk goes back to the
    hidden states as soon as its loss is known, so its logits [n, V] are computed once, and only one chunk exists at a time.
    """
    head = model.get_output_embeddings()
    with attending(model, layout):  # also during backward, where checkpointed layers run again
        hidden, targets = _predicting(model, ids, loss_mask, layout)
        gradient = torch.empty_like(hidden)
        pieces, logprobs = chunked_logprobs(head, hidden, temperature)
        for chunk in pieces:
            part = hidden[chunk].detach().requires_grad_(hidden.requires_grad)
            chosen, entropy = logprobs(part, targets[chunk])
            loss(chosen, entropy, chunk).backward()
            if part.grad is not None:
                gradient[chunk] = part.grad
        if hidden.requires_grad:
            hidden.backward(gradient)


def attending(model: PreTrainedModel, layout: Layout | None) -> AbstractContextManager[None]:
    """Run the model with the attention that a layout needs inside the block."""
    lines = layout is not None and isinstance(layout.attention, Line)
    return running_attention(model, LINE_ATTENTION) if lines else nullcontext()


def hidden_states(model: PreTrainedModel, ids: torch.Tensor, layout: Layout | None) -> torch.Tensor:
    """Last hidden states [B, T, H] of ids [B, T]."""
    with attending(model, layout):
        states: torch.Tensor = model.base_model(
            input_ids=ids, use_cache=False, **({} if layout is None else layout.arguments)
        ).last_hidden_state
    return states


def _predicting(
    model: PreTrainedModel, ids: torch.Tensor, loss_mask: torch.Tensor, layout: Layout | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [N, H] from which the head predicts the tokens in `loss_mask`, and these tokens [N]."""
    hidden = hidden_states(model, ids, layout)
    row, column = loss_mask.nonzero(as_tuple=True)
    previous = column - 1 if layout is None else layout.previous[row, column]
    # Completions that share a prompt read the same row of `hidden`. Backward of hidden[...] would add their gradients in thread order.
    return hidden.flatten(0, 1).index_select(0, row * hidden.shape[1] + previous), ids[row, column]
