"""Attention of a line: prompts and replies end to end, each prompt once, without padding and without a mask.

A line holds prompts, then the replies to each of them, then sequences that share nothing. Each of these pieces attends to its own earlier tokens,
and a reply to its whole prompt besides. Two calls of flash attention for pieces of any length compute that: one for the pieces, one of
replies to prompts. Their results are joined by their normalizers, the log-sum-exp of the scores. With the joint result and normalizer,
flash attention's own backward gives each part's gradients (the way of ring attention, Liu et al. 2023).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from mth.foundations.errors import first_line
from mth.models.attention import uses_registry

LINE_ATTENTION = "mth_line"  # name of `line_attention` in transformers' registry
UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias")  # arguments of attention of other kinds


@dataclass(frozen=True)
class Pieces:
    """bounds: int32 [n + 1] on the device, where each of n pieces begins and the last one ends. longest: tokens of the longest, 2 at least.

    With one token as the longest, torch's flash attention reorders heads and normalizers.
    """

    bounds: torch.Tensor
    longest: int

    @staticmethod
    def of(lengths: list[int], device: torch.device) -> "Pieces":
        """Pieces of these lengths, one behind the other."""
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return Pieces(bounds.to(device, non_blocking=True), max(2, *lengths))


@dataclass(frozen=True)
class Line:
    """own: all pieces. prompts, replies: pieces in equal number, a group's prompt and all its replies; None without groups.

    The prompts are the first `shared` tokens of the line, the replies the next `answering` ones.
    """

    own: Pieces
    prompts: Pieces | None = None
    replies: Pieces | None = None
    shared: int = 0
    answering: int = 0


class _LineAttention(torch.autograd.Function):
    """query [T, heads, D], key and value [T, key heads, D] to [T, heads, D]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, line: Line, scale: float) -> torch.Tensor:
        out, normalizer = _flash(query, key, value, line.own, line.own, True, scale)
        if line.prompts is not None and line.replies is not None:
            first, rest = slice(line.shared), slice(line.shared, line.shared + line.answering)
            other, normalizer_of_other = _flash(query[rest], key[first], value[first], line.replies, line.prompts, False, scale)
            both = torch.logaddexp(normalizer[:, rest], normalizer_of_other)
            weights = [(part - both).exp().t().unsqueeze(2) for part in (normalizer[:, rest], normalizer_of_other)]
            out[rest] = (out[rest] * weights[0] + other * weights[1]).to(out.dtype)
            normalizer[:, rest] = both
        ctx.save_for_backward(query, key, value, out, normalizer)
        ctx.line, ctx.scale = line, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, out, normalizer = ctx.saved_tensors
        line, (grad,) = ctx.line, grads
        of_query, of_key, of_value = _flash_backward(grad, query, key, value, out, normalizer, line.own, line.own, True, ctx.scale)
        if line.prompts is not None and line.replies is not None:
            first, rest = slice(line.shared), slice(line.shared, line.shared + line.answering)
            more = _flash_backward(
                grad[rest],
                query[rest],
                key[first],
                value[first],
                out[rest],
                normalizer[:, rest].contiguous(),
                line.replies,
                line.prompts,
                False,
                ctx.scale,
            )
            of_query[rest] += more[0]
            of_key[first] += more[1]
            of_value[first] += more[2]
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

    Raises RuntimeError for attention of another kind: with a window, a cap, sinks, dropout.
    """
    if found := [name for name in UNKNOWN if others.get(name) is not None]:
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
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if not _has_flash(model.device, model.dtype):
        return "flash attention needs a GPU and a model in bfloat16 or float16"
    if not uses_registry(model):
        return f"{type(model).__name__} has attention of its own"
    return _trial(model.device, model.dtype, heads, getattr(config, "num_key_value_heads", None) or heads, size)


def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has flash attention there at all."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


@cache
def _trial(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> str | None:
    """Compare a small line's attention and gradients with those under a mask in fp32. Returns what is wrong."""
    prompt, replies, alone = 37, (70, 1, 5), 9
    line = Line(
        Pieces.of([prompt, *replies, alone], device),
        Pieces.of([prompt], device),
        Pieces.of([sum(replies)], device),
        prompt,
        sum(replies),
    )
    piece = torch.arange(2 + len(replies)).repeat_interleave(torch.tensor([prompt, *replies, alone])).to(device)
    key, query = piece[None, :], piece[:, None]
    tokens = len(piece)
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    mask = causal & ((key == query) | ((key == 0) & (query <= len(replies))))
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(tokens, count, size, generator=draw).to(device, dtype) for count in (heads, key_heads, key_heads, heads)]
    try:
        found = [_with_gradients(given, lambda q, k, v: _LineAttention.apply(q, k, v, line, size**-0.5)) for _ in range(2)]
        exact = _with_gradients([each.float() for each in given], lambda q, k, v: _masked(q, k, v, mask))
        for name, once, again, right in zip(("results", "queries", "keys", "values"), *found, exact, strict=True):
            if not (once.float() - right).norm() <= 0.02 * right.norm():
                return f"flash attention gives other {name} than attention under a mask"
            if torch.are_deterministic_algorithms_enabled() and not torch.equal(once, again):
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
