"""Sums of products over tokens at the active entries of a weight matrix, by kernels on a GPU.

Both operands are read by feature, with the tokens of one feature side by side in memory. What is not is transposed, once for all layers that
read it.
"""

import torch

from mth.tickets.launches import kernels, launch

ENTRIES, TOKENS, WARPS = 8, 256, 4  # entries and tokens that one program multiplies at a time, and its warps
PROGRAMS = 1024  # at least; with fewer entries each sum is cut into more spans of tokens
SPAN_BYTES = 2**25  # of the input within one span: it stays in the second-level cache while all entries read it
SIDE = 64  # of a tile that is transposed
ROW = 64  # a transposed feature's length in memory is a multiple of this, so that a thread loads 16 bytes at a time


def transposed(x: torch.Tensor) -> torch.Tensor:
    """x [T, F] as [F, T], copied so that the tokens of each feature are side by side."""
    x = x if x.stride(1) == 1 else x.contiguous()
    tokens, features = x.shape
    width = -(-tokens // ROW) * ROW
    out = torch.empty(features, width, dtype=x.dtype, device=x.device)
    grid = (width // ROW, -(-features // SIDE))
    launch(kernels().transpose, grid, x, out, tokens, features, x.stride(0), width, SIDE=SIDE)
    return out[:, :tokens]


def add_products(out: torch.Tensor, index: torch.Tensor, dyt: torch.Tensor, xt: torch.Tensor) -> None:
    """Add dy^T x at its sorted flat indices `index` [K] to `out` [K], in fp32. dyt [rows, T], xt [columns, T], by feature.

    The order of each sum follows from the shapes, so the same call gives the same bits.
    """
    count, (columns, tokens) = index.numel(), xt.shape
    span, spans = spans_of(count, tokens, columns * xt.element_size())
    parts = out if spans == 1 else torch.empty(spans, count, dtype=torch.float32, device=out.device)
    sizes = count, columns, tokens, span, dyt.stride(0), xt.stride(0)
    grid, constants = (-(-count // ENTRIES), spans), {"ADD": spans == 1, "ENTRIES": ENTRIES, "TOKENS": TOKENS, "num_warps": WARPS}
    launch(kernels().sum_products, grid, parts, dyt, xt, index, *sizes, **constants)
    if spans > 1:
        out += parts.sum(0)


def spans_of(count: int, tokens: int, token_bytes: int) -> tuple[int, int]:
    """Tokens of a span, and number of spans, for `count` entries. token_bytes: of one token's input."""
    programs = -(-count // ENTRIES)
    wanted = max(-(-PROGRAMS // programs), -(-tokens * token_bytes // SPAN_BYTES))
    span = -(-tokens // (wanted * TOKENS)) * TOKENS
    return span, -(-tokens // span)
