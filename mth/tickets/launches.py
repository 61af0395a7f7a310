"""Few launches for all tensors of a ticket: on a GPU one kernel moves their active entries, where torch needs several launches for each.

A table holds the addresses of the tensors and of their indices. It is made anew for other addresses, so a tensor may move in memory.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch

KEPT_TABLES = 2  # the model's, and that of a copy that generates
WAITING_BYTES = 2**27  # of gradients that wait for their launch
WAITING_TENSORS = 128

Row = tuple[int, int, int, int]  # addresses of tensor and indices, first place in the flat vector, count


class Table(NamedTuple):
    """Active entries of tensors of one dtype, whose indices have one dtype too; None if every entry is active.

    rows: int64 [5, n] on the device: addresses of tensors and indices, first place in the flat vector, count, first block. blocks: of all.
    """

    rows: torch.Tensor
    blocks: int
    dtype: torch.dtype
    index_dtype: torch.dtype | None


class Waiting:
    """Gradients of one backward that wait for their launch, by name."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.bytes = 0

    def add(self, name: str, gradient: torch.Tensor) -> None:
        known = self.gradients.get(name)
        self.gradients[name] = gradient if known is None else known + gradient
        self.bytes += gradient.numel() * gradient.element_size()

    @property
    def enough(self) -> bool:
        return self.bytes >= WAITING_BYTES or len(self.gradients) >= WAITING_TENSORS

    def take(self) -> dict[str, torch.Tensor]:
        """The gradients, which are forgotten here."""
        taken, self.gradients, self.bytes = self.gradients, {}, 0
        return taken


def tables_of(tensors: Mapping[str, torch.Tensor], indices: Mapping[str, torch.Tensor | None], slices: Mapping[str, slice]) -> list[Table]:
    """Tables of the active entries of contiguous tensors on one GPU: one for each pair of dtypes, more if there are very many tensors."""
    kinds: dict[tuple[torch.dtype, torch.dtype | None], list[Row]] = defaultdict(list)
    for name, tensor in tensors.items():
        index, place = indices[name], slices[name]
        if place.stop > place.start:
            row = tensor.data_ptr(), 0 if index is None else index.data_ptr(), place.start, place.stop - place.start
            kinds[tensor.dtype, None if index is None else index.dtype].append(row)
    most, device = kernels().MOST, next((tensor.device for tensor in tensors.values()), None)
    return [_table(rows[at : at + most], kind, device) for kind, rows in kinds.items() for at in range(0, len(rows), most)]


def move(what: str, tables: list[Table], flat: torch.Tensor) -> None:
    """ "read", "write" or "add" the entries, see mth.tickets.kernels.move_entries; one launch a table. flat: contiguous [K]."""
    most, block = kernels().MOST, kernels().BLOCK
    for table in tables:
        constants = {"WHAT": what, "ELEMENT": _type(table.dtype), "INDEX": None if table.index_dtype is None else _type(table.index_dtype)}
        launch(kernels().move_entries, (table.blocks,), flat, table.rows, table.rows.shape[1], **constants, MOST=most, BLOCK=block)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start a kernel on the device of its first argument, a tensor."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants, enable_fp_fusion=True)


def _table(rows: list[Row], kind: tuple[torch.dtype, torch.dtype | None], device: torch.device | None) -> Table:
    block, blocks, firsts = kernels().BLOCK, 0, []
    for *_, count in rows:
        firsts.append(blocks)
        blocks += -(-count // block)
    columns = [*zip(*rows, strict=True), firsts]
    return Table(torch.tensor(columns, dtype=torch.int64).to(device, non_blocking=True), blocks, *kind)


@cache
def kernels() -> Any:
    """The kernels, whose module needs triton and is imported on first use."""
    import mth.tickets.kernels

    return mth.tickets.kernels


def _type(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype."""
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))
