"""torch's flash attention for pieces of any length, which only a GPU has, on a CPU: its operations, by way of torch's kernel for one piece.

It refuses what the GPU's refuses: bounds that are not int32, that do not end where the tokens do, other sizes of heads, features that are not
side by side in memory, normalizers of another shape.
"""

from itertools import pairwise

import pytest
import torch

from mth.training import lines

aten = torch.ops.aten


def spans(bounds, tokens, longest):
    assert bounds.dtype is torch.int32 and bounds.is_contiguous() and bounds[-1] == tokens and longest > 1
    starts = bounds.tolist()
    assert all(0 < end - start <= longest for start, end in pairwise(starts)), (starts, longest)
    return [slice(start, end) for start, end in pairwise(starts)]


def refuse(query, key, value):
    """What torch's operation for a GPU checks first."""
    size = query.shape[-1]
    if not (size == key.shape[-1] == value.shape[-1] and size % 8 == 0 and size <= 256 and query.shape[1] % key.shape[1] == 0):
        raise RuntimeError(f"sizes of heads {size}, {key.shape[-1]}, {value.shape[-1]}")
    if not all(each.stride(-1) == 1 for each in (query, key, value)):
        raise RuntimeError("Input tensor must have contiguous last dimension")


def as_piece(each, repeats=1):
    """[n, heads, D] to [1, heads, n, D], with each head repeated."""
    return each.transpose(0, 1).repeat_interleave(repeats, 0).unsqueeze(0).contiguous()


def forward(query, key, value, cum_q, cum_k, max_q, max_k, dropout, causal, debug, *, scale=None, **others):
    refuse(query, key, value)
    out, normalizer = torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
    repeats = query.shape[1] // key.shape[1]
    for rows, columns in zip(spans(cum_q, len(query), max_q), spans(cum_k, len(key), max_k), strict=True):
        parts = as_piece(query[rows]), as_piece(key[columns], repeats), as_piece(value[columns], repeats)
        part, norm = aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, causal, scale=scale)
        out[rows], normalizer[:, rows] = part[0].transpose(0, 1), norm[0]
    return out, normalizer, query.new_zeros(2, dtype=torch.uint64), query.new_empty(0), query.new_empty(0)


def backward(grad, query, key, value, out, normalizer, cum_q, cum_k, max_q, max_k, dropout, causal, state, unused, *, scale=None, **others):
    refuse(query, key, value)
    assert normalizer.shape == (query.shape[1], query.shape[0]) and normalizer.is_contiguous()
    repeats = query.shape[1] // key.shape[1]
    found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for rows, columns in zip(spans(cum_q, len(query), max_q), spans(cum_k, len(key), max_k), strict=True):
        parts = as_piece(query[rows]), as_piece(key[columns], repeats), as_piece(value[columns], repeats)
        given = as_piece(grad[rows]), *parts, as_piece(out[rows]), normalizer[None, :, rows].contiguous()
        of_query, *others_found = aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, causal, scale=scale)
        found[0][rows] = of_query[0].transpose(0, 1)
        for target, part in zip(found[1:], others_found, strict=True):
            target[columns] = part[0].unflatten(0, (-1, repeats)).sum(1).transpose(0, 1)
    return found


@pytest.fixture
def flash_on_cpu(monkeypatch):
    """Within a test, a CPU has the operations."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    monkeypatch.setattr(lines, "_has_flash", lambda device, dtype: True)
    lines._trial.cache_clear()
    yield
    lines._trial.cache_clear()
    library._destroy()
