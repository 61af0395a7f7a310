"""Optimizer memory (paper, Table 5 and appendix E): bytes really allocated per part, at the real shapes and without weights."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from mth.config import MaskConfig, OptimizerConfig
from mth.tickets.sampling import Shapes, chooser
from mth.tickets.ticket import Ticket
from mth.update import build_optimizer

# Table 5, MiB; sparsity in percent. Reproduced by 16 bytes per active entry (two fp32 moments and an int64 index), 8 for full training.
PAPER_MIB: dict[str, dict[float, float]] = {
    "qwen2.5-1.5b": {0: 11776, 99: 235.8, 99.5: 118, 99.9: 23.8, 99.95: 12, 99.99: 2.5, 99.999: 0.39},
    "qwen2.5-0.5b": {0: 3769.5, 99: 75.6, 99.5: 37.86, 99.9: 7.67, 99.95: 3.9, 99.99: 0.9, 99.999: 0.2},
}
MIB = 2**20
PARTS = ("values", "moments", "index", "gradient")  # values: the fp32 master copy of the active entries


def allocated(shapes: Shapes, percent: float, mask: MaskConfig | None = None, mask_seed: int = 0) -> dict[str, int]:
    """Bytes per part of a ticket after one AdamW step, summed over the model's tensors.

    Every tensor of the real shape is allocated in bf16 with its own ticket and optimizer, stepped once, measured and freed, so that
    full training of a model whose optimizer would not fit into memory is measured as well. Peak memory: about 22 bytes per entry of the
    largest tensor. Their sum is what one ticket over all tensors allocates (tested on the embedded model).
    """
    total = dict.fromkeys(PARTS, 0)
    for part in _tensor_parts(shapes, percent, mask or MaskConfig(), mask_seed):
        for key in PARTS:
            total[key] += part[key]
    return total


def _tensor_parts(shapes: Shapes, percent: float, mask: MaskConfig, mask_seed: int) -> Iterator[dict[str, int]]:
    choose = chooser(shapes, mask, percent, mask_seed)
    for name, shape in shapes.items():
        index = choose(name)
        if index is not None and index.size == 0:
            continue
        parameter = nn.Parameter(torch.zeros(math.prod(shape), dtype=torch.bfloat16))
        ticket = Ticket({name: parameter}, {name: index})
        optimizer = build_optimizer(ticket, OptimizerConfig(), 1e-6)
        optimizer.step()
        yield ticket.memory(optimizer)


def optimizer_mib(parts: dict[str, int]) -> float:
    """What Table 5 counts, of ours: moments and index, in MiB."""
    return (parts["moments"] + parts["index"]) / MIB
