"""Kernels for a GPU, in Triton: a ticket's entries moved in one launch, and sums over tokens at these entries. Needs triton to import.

Every result is written once, and every sum has a fixed order: the same call gives the same bits. What varies from call to call is not
specialized, because Triton would compile anew for a number that is one or a multiple of 16.
"""

import triton
import triton.language as tl

MOST = 512  # tensors of one table, a power of two
BLOCK = 1024  # entries that one program moves


@triton.jit(do_not_specialize=["count"])
def move_entries(
    flat, table, count, WHAT: tl.constexpr, ELEMENT: tl.constexpr, INDEX: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr
):
    """Move the active entries of `count` tensors between these and a flat vector. One program moves BLOCK entries of one tensor.

    table: int64 [5, count], see mth.tickets.launches.Table. WHAT: "read" copies the tensors' entries to the flat vector, "write" copies the
    flat vector to the tensors, "add" adds the tensors' entries to the flat vector. ELEMENT: type of the tensors. INDEX: type of their
    indices, or None if every entry is active.
    """
    block = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, MOST)
    firsts = tl.load(table + 4 * count + rows, mask=rows < count, other=2**62)
    row = tl.sum((firsts <= block).to(tl.int32), 0) - 1  # the last tensor that begins at this block or before
    offset = (block - tl.load(table + 4 * count + row)) * BLOCK + tl.arange(0, BLOCK)
    live = offset < tl.load(table + 3 * count + row)
    if INDEX is None:
        entry = offset
    else:
        index = tl.load(table + count + row).to(tl.pointer_type(INDEX))
        entry = tl.load(index + offset, mask=live, other=0).to(tl.int64)
    there = tl.load(table + row).to(tl.pointer_type(ELEMENT)) + entry
    here = flat + tl.load(table + 2 * count + row) + offset
    if WHAT == "write":
        tl.store(there, tl.load(here, mask=live, other=0.0).to(ELEMENT), mask=live)
    else:
        value = tl.load(there, mask=live, other=0.0).to(tl.float32)
        if WHAT == "add":
            value += tl.load(here, mask=live, other=0.0)
        tl.store(here, value, mask=live)


@triton.jit(do_not_specialize=["tokens"])
def transpose(x, out, tokens, features, row, width, SIDE: tl.constexpr):
    """Copy x [tokens, features] with rows `row` apart to out [features, width]; what is behind the tokens becomes zero. By tiles of SIDE."""
    token = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    feature = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    known = (token < tokens)[:, None] & (feature < features)[None, :]
    tile = tl.load(x + token[:, None].to(tl.int64) * row + feature[None, :], mask=known, other=0.0)
    inside = (feature < features)[:, None] & (token < width)[None, :]
    tl.store(out + feature[:, None].to(tl.int64) * width + token[None, :], tl.trans(tile), mask=inside)


@triton.jit(do_not_specialize=["count", "tokens"])
def sum_products(
    parts, dyt, xt, index, count, columns, tokens, span, dyt_row, xt_row, ADD: tl.constexpr, ENTRIES: tl.constexpr, TOKENS: tl.constexpr
):
    """Sum dy times x over a span of tokens, for ENTRIES entries of dy^T x, in fp32. Operands by feature: dyt [rows, tokens], xt [columns, tokens].

    index: flat indices [count] in [rows, columns]. parts: fp32 [spans, count]; with ADD the only span is added to what is there.
    dyt_row, xt_row: distance of two features in memory. span: a multiple of TOKENS.
    """
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    live = entry < count
    flat = tl.load(index + entry, mask=live, other=0)
    dy = dyt + ((flat // columns).to(tl.int64) * dyt_row)[:, None]
    x = xt + ((flat % columns).to(tl.int64) * xt_row)[:, None]
    first = tl.program_id(1) * span
    last = tl.minimum(first + span, tokens)
    whole = first + (last - first) // TOKENS * TOKENS
    total = tl.zeros([ENTRIES, TOKENS], tl.float32)
    for start in range(first, whole, TOKENS):  # without a mask over the tokens, so that a thread loads 16 bytes at a time
        token = (start + tl.arange(0, TOKENS))[None, :]
        total += tl.load(dy + token, mask=live[:, None], other=0.0).to(tl.float32) * tl.load(x + token, mask=live[:, None], other=0.0).to(
            tl.float32
        )
    if whole < last:
        token = (whole + tl.arange(0, TOKENS))[None, :]
        rest = live[:, None] & (token < last)
        total += tl.load(dy + token, mask=rest, other=0.0).to(tl.float32) * tl.load(x + token, mask=rest, other=0.0).to(tl.float32)
    result = tl.sum(total, 1)
    place = parts + tl.program_id(1).to(tl.int64) * count + entry
    if ADD:
        result += tl.load(place, mask=live, other=0.0)
    tl.store(place, result, mask=live)
