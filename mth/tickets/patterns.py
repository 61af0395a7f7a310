"""The active entries of a weight matrix as a sparse CSR pattern whose values are its slice of the ticket's flat gradient."""

import math
import warnings
from typing import NamedTuple

import torch

from mth.tickets.ticket import Ticket

COMPACT_BELOW = 0.75  # empty rows (columns) are dropped if fewer than this share of them is expected to hold an active entry


class CompactPattern(NamedTuple):
    """A pattern without its empty rows and columns.

    rows, columns: sorted int64 indices of those that are left, or None for all.
    """

    pattern: torch.Tensor
    rows: torch.Tensor | None
    columns: torch.Tensor | None


def gradient_pattern(ticket: Ticket, name: str) -> torch.Tensor:
    """The active entries of a tensor as a CSR matrix. Its values share memory with the tensor's slice of the flat gradient."""
    assert ticket.values.grad is not None
    index = ticket.indices[name]
    assert index is not None
    rows, columns = ticket.shapes[name]
    edges = torch.arange(rows + 1, dtype=torch.int64, device=index.device) * columns
    starts = torch.searchsorted(index, edges.to(index.dtype) if rows * columns < 2**31 else edges, out_int32=True)
    return _shared_csr(starts, (index % columns).int(), ticket.values.grad[ticket.slices[name]], (rows, columns))


def compact(pattern: torch.Tensor) -> CompactPattern:
    """Drop the empty rows, and the empty columns, where there are many. The values still share memory with the flat gradient.

    A very sparse tensor then reads few features of each operand, and keeps few features of its input for backward.
    """
    starts, column, (height, width) = pattern.crow_indices(), pattern.col_indices(), pattern.shape
    rows = columns = None
    if expected_nonempty(height, column.numel()) < height:
        nonempty = starts.diff() > 0
        rows = nonempty.nonzero().squeeze(1)
        starts = torch.cat([starts[:-1][nonempty], starts[-1:]])
    if expected_nonempty(width, column.numel()) < width:
        nonempty = torch.zeros(width, dtype=torch.bool, device=column.device).index_fill_(0, column.long(), True)
        columns = nonempty.nonzero().squeeze(1)
        column = (nonempty.cumsum(0, dtype=torch.int32) - 1)[column]
    shape = (starts.numel() - 1, width if columns is None else columns.numel())
    return CompactPattern(_shared_csr(starts, column, pattern.values(), shape), rows, columns)


def expected_nonempty(size: int, count: int) -> float:
    """Expected number of non-empty rows among `size`, with `count` active entries at random places; the same holds for columns.

    Returns `size` if the expected share is COMPACT_BELOW or more, because `compact` then keeps every row.
    """
    expected = size * -math.expm1(count * math.log1p(-1 / size)) if size > 1 else size
    return expected if expected < COMPACT_BELOW * size else size


def _shared_csr(starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
