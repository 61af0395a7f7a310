"""Optimizer memory (paper, Table 5 and appendix E): bytes allocated per part, at the real shapes and without weights."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from mth.config.schema import MaskConfig, OptimizerConfig
from mth.tickets.indices import Indices, Shapes
from mth.tickets.masks import lazy_mask
from mth.tickets.optimizer import build_optimizer
from mth.tickets.ticket import Ticket

MIB = 2**20
MAX_GROUP_ENTRIES = 2**26
PARTS = ("values", "moments", "index", "gradient")  # values: the fp32 master copy of the active entries


def allocated_bytes(shapes: Shapes, percent: float, mask: MaskConfig | None = None, mask_seed: int = 0) -> dict[str, int]:
    """Bytes per part of a ticket after one AdamW step, summed over the model's tensors.

    Allocates one group of tensors at a time in bf16, steps its own optimizer once, measures and frees it. So full training can be measured
    even if its optimizer does not fit into memory. The sum equals the bytes of one ticket over all tensors. Peak memory: about 22 bytes per
    entry of the largest group.
    """
    total = dict.fromkeys(PARTS, 0)
    draw = lazy_mask(shapes, mask or MaskConfig(), percent, mask_seed)
    for names in tensor_groups(shapes):
        parts = _group_bytes(shapes, {name: draw(name) for name in names})
        total = {key: total[key] + parts[key] for key in PARTS}
    return total


def tensor_groups(shapes: Shapes) -> Iterator[list[str]]:
    """Names of the tensors in order, in groups of at most MAX_GROUP_ENTRIES entries. A larger tensor is a group of its own."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + math.prod(shape) > MAX_GROUP_ENTRIES:
            yield names
            names, size = [], 0
        names.append(name)
        size += math.prod(shape)
    yield names


def _group_bytes(shapes: Shapes, indices: Indices) -> dict[str, int]:
    parameters = {name: nn.Parameter(torch.zeros(math.prod(shapes[name]), dtype=torch.bfloat16)) for name in indices}
    ticket = Ticket(parameters, indices)
    optimizer = build_optimizer(ticket, OptimizerConfig(), 1e-6)
    optimizer.step()
    return ticket.memory(optimizer)


def optimizer_mib(parts: dict[str, int]) -> float:
    """MiB of what Table 5 counts: moments and index."""
    return (parts["moments"] + parts["index"]) / MIB
