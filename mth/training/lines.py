"""Attention of a line: prompts and replies end to end, a prompt once for all its replies, without padding between them and without a mask.

A line holds prompts, then the replies to each of them, then sequences that share nothing. Each of these pieces attends to its own earlier tokens,
and a reply to its whole prompt besides. Two calls of flash attention for pieces of any length compute that: one for the pieces, one of
replies to copies of their prompts. Their results are joined by their normalizers, the log-sum-exp of the scores. With the joint result and
normalizer, flash attention's own backward gives each part's gradients (the way of ring attention, Liu et al. 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from mth.foundations.errors import first_line
from mth.models.attention import uses_registry

LINE_ATTENTION = "mth_line"  # name of `line_attention` in transformers' registry
HARMLESS = ("position_ids", "use_cache", "is_causal")  # arguments of transformers that do not change what attention computes


@dataclass(frozen=True)
class Pieces:
    """bounds: int32 [n + 1] on the device, where each of n pieces begins and the last one ends. longest: tokens of the longest, 2 at least.

    With one token as the longest, torch's flash attention reorders heads and normalizers.
    """

    bounds: torch.Tensor
    longest: int

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> "Pieces":
        """Pieces of these lengths, one behind the other."""
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return Pieces(bounds.to(device, non_blocking=True), max(2, *lengths))


@dataclass(frozen=True)
class Crossing:
    """Replies that attend to their prompts. Each has a copy of its prompt, so that a GPU has as many pieces to work on as there are replies.

    replies, prompts: as many pieces each. keys, queries: the places of all prompts and of all replies in the line. copies [C]: the token of the
    line that each token of a copy is. places [P, R]: where the copies of each of the P prompt tokens lie, C where there are fewer than R.
    """

    replies: Pieces
    prompts: Pieces
    keys: slice
    queries: slice
    copies: torch.Tensor
    places: torch.Tensor

    def copied(self, *parts: torch.Tensor) -> list[torch.Tensor]:
        """Copies of the prompts' keys, or of their values, [T, ...] to [C, ...]."""
        return [part.index_select(0, self.copies) for part in parts]

    def collect(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over its copies for each token of the prompts, [C, ...] to [P, ...], in a fixed order."""
        padded = torch.cat([part, part.new_zeros(1, *part.shape[1:])])
        return padded.index_select(0, self.places.flatten()).unflatten(0, self.places.shape).sum(1)


@dataclass(frozen=True)
class Line:
    """own: all pieces. crossing: None if no sequences share a prompt."""

    own: Pieces
    crossing: Crossing | None

    @staticmethod
    def of(prompts: Sequence[int], replies: Sequence[Sequence[int]], alone: Sequence[int], device: torch.device) -> "Line":
        """A line of these lengths: prompts, the replies to each of them, sequences that share nothing."""
        answers = [length for group in replies for length in group]
        own = Pieces.of([*prompts, *answers, *alone], device)
        if not prompts:
            return Line(own, None)
        shared, copies, places = sum(prompts), list[np.ndarray](), np.full((sum(prompts), max(map(len, replies))), -1)
        start = end = 0  # of a prompt in the line, of its copies
        for length, group in zip(prompts, replies, strict=True):
            tokens = np.arange(length)
            places[start : start + length, : len(group)] = end + tokens[:, None] + length * np.arange(len(group))
            copies += [start + tokens] * len(group)
            start, end = start + length, end + length * len(group)
        places[places < 0] = end
        lengths = [length for length, group in zip(prompts, replies, strict=True) for _ in group]
        indices = (torch.from_numpy(each).to(device, non_blocking=True) for each in (np.concatenate(copies), places))
        queries = slice(shared, shared + sum(answers))
        return Line(own, Crossing(Pieces.of(answers, device), Pieces.of(lengths, device), slice(shared), queries, *indices))


class _LineAttention(torch.autograd.Function):
    """query [T, heads, D], key and value [T, key heads, D] to [T, heads, D]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, line: Line, scale: float) -> torch.Tensor:
        out, normalizer = _flash(query, key, value, line.own, line.own, True, scale)
        if (crossing := line.crossing) is not None:
            rest, (keys, values) = crossing.queries, crossing.copied(key, value)
            other, normalizer_of_other = _flash(query[rest], keys, values, crossing.replies, crossing.prompts, False, scale)
            share = (normalizer_of_other - normalizer[:, rest]).sigmoid().t().unsqueeze(2)  # of the prompt in a softmax over both
            out[rest].lerp_(other, share.to(out.dtype))
            normalizer[:, rest] = torch.logaddexp(normalizer[:, rest], normalizer_of_other)
        ctx.save_for_backward(query, key, value, out, normalizer)
        ctx.line, ctx.scale = line, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, out, normalizer = ctx.saved_tensors
        (grad,), line = grads, ctx.line
        of_query, of_key, of_value = _flash_backward(grad, query, key, value, out, normalizer, line.own, line.own, True, ctx.scale)
        if (crossing := line.crossing) is not None:
            rest, (keys, values) = crossing.queries, crossing.copied(key, value)
            given = grad[rest], query[rest], keys, values, out[rest], normalizer[:, rest].contiguous()
            more = _flash_backward(*given, crossing.replies, crossing.prompts, False, ctx.scale)
            of_query[rest] += more[0]
            of_key[crossing.keys] += crossing.collect(more[1])
            of_value[crossing.keys] += crossing.collect(more[2])
        return of_query, of_key, of_value, None, None


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Pieces, keys: Pieces, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each piece of the queries to the piece of the keys with the same number. Returns it with its normalizers [heads, T]."""
    arguments = query, key, value, queries.bounds, keys.bounds, queries.longest, keys.longest, 0.0, causal, False
    out, normalizer, *_ = torch.ops.aten._flash_attention_forward(*arguments, scale=scale)
    if normalizer.shape != (query.shape[1], query.shape[0]):
        raise RuntimeError(f"flash attention gave normalizers of shape {tuple(normalizer.shape)}")
    return out, normalizer


def _flash_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    normalizer: torch.Tensor,
    queries: Pieces,
    keys: Pieces,
    causal: bool,
    scale: float,
) -> Any:
    """Gradients of query, key and value. out, normalizer: of all that the queries attend to, also where these keys are a part of it."""
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device)
    sizes = queries.bounds, keys.bounds, queries.longest, keys.longest
    return torch.ops.aten._flash_attention_backward(
        grad.contiguous(), query, key, value, out, normalizer, *sizes, 0.0, causal, *no_dropout, scale=scale
    )


def line_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    line: Line | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' registry. query [1, heads, T, D]; key, value [1, key heads, T, D]. Returns [1, T, heads, D].

    Raises RuntimeError if other arguments are given: attention may then have a window, a cap or sinks.
    """
    if found := [name for name, given in others.items() if given is not None and name not in HARMLESS]:
        raise RuntimeError(f"attention with {found[0]}")
    if line is None or dropout or attention_mask is not None:
        raise RuntimeError("attention without a line, with dropout or with a mask")
    parts = [each.squeeze(0).transpose(0, 1) for each in (query, key, value)]
    parts = [each if each.stride(-1) == 1 else each.contiguous() for each in parts]  # sampled gradients write some results by feature
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = _LineAttention.apply(*parts, line, scale)
    return out.unsqueeze(0), None


AttentionInterface.register(LINE_ATTENTION, line_attention)


def reason_against_lines(model: PreTrainedModel) -> str | None:
    """Why this model's attention cannot be that of a line; None if it can. Tries flash attention on the model's device, once for a shape."""
    if not _has_flash(model.device, model.dtype):
        return "flash attention needs a GPU and model.dtype=bfloat16"
    if not uses_registry(model):
        return f"{type(model).__name__} has attention of its own"
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return _trial(model.device, model.dtype, heads, key_heads, size, torch.are_deterministic_algorithms_enabled())


def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has flash attention there at all."""
    return device.type == "cuda" and dtype is torch.bfloat16


@cache
def _trial(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int, repeats: bool) -> str | None:
    """Compare a small line's attention and gradients with those under a mask in fp32. Returns what is wrong. repeats: has to give the same twice.

    The operands lie in memory token by token, and then head by head: families of models differ in that.
    """
    prompts, replies, alone = [37, 301], [[70, 1, 5], [150, 310]], [9]
    line = Line.of(prompts, replies, alone, device)
    lengths = [*prompts, *replies[0], *replies[1], *alone]
    piece, prompt = (
        torch.tensor(each).repeat_interleave(torch.tensor(lengths)).to(device) for each in (range(len(lengths)), [0, 1, 0, 0, 0, 1, 1, 7])
    )
    tokens = len(piece)
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    mask = causal & ((piece[None, :] == piece[:, None]) | (piece[None, :] == prompt[:, None]))
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(tokens, count, size, generator=draw).to(device, dtype) for count in (heads, key_heads, key_heads, heads)]
    by_head = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in given[:3]] + given[3:]
    try:
        exact = _with_gradients([each.float() for each in given], lambda q, k, v: _masked(q, k, v, mask))
        for operands in (given, by_head):
            found = [_with_gradients(operands, lambda q, k, v: _LineAttention.apply(q, k, v, line, size**-0.5)) for _ in range(2)]
            for name, once, again, right in zip(("results", "queries", "keys", "values"), *found, exact, strict=True):
                if not (once.float() - right).norm() <= 0.02 * right.norm():
                    return f"flash attention gives other {name} than attention under a mask"
                if repeats and not torch.equal(once, again):
                    return f"flash attention gives other {name} the second time"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an operation that is missing, a device that is too old, another version of torch
        return f"{type(error).__name__}: {first_line(error, 160)}"
    return None


def _with_gradients(given: list[torch.Tensor], attend: Any) -> list[torch.Tensor]:
    """Result of attention and the gradients of its operands, for the last of the given as the gradient of the result."""
    operands = [each.detach().requires_grad_() for each in given[:3]]
    out = attend(*operands)
    return [out, *torch.autograd.grad(out, operands, given[3])]


def _masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention by its definition, in the operands' dtype."""
    repeats = query.shape[1] // key.shape[1]
    query, key, value = (each.transpose(0, 1) for each in (query, key, value))
    key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(0, 1)
