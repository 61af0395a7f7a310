"""`mask=first_layer`, `mask=last_layer`: random entries inside one decoder layer, or the whole layer (paper, appendix C).

`mask=middle_layer` is the layer between them; the paper has no such mask.
"""

import math
import re
from functools import partial

from mth.config.choices import Budget
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets.indices import Shapes
from mth.tickets.masks.base import Family, floor_counts
from mth.tickets.masks.random import random_entries

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")  # the number of a decoder layer in a tensor's name


def layer_tensors(shapes: Shapes, at: float) -> list[str]:
    """Names of the tensors of one decoder layer. at: 0 the first, 1 the last, 0.5 the middle one, of an even number the later.

    Raises UserError if no tensor is named by layer.
    """
    layers = {name: int(found[1]) for name in shapes if (found := LAYER.search(name)) is not None}
    if not layers:
        raise UserError(f"mask.family={', '.join(FAMILIES)} need a model whose tensors are named by decoder layer")
    numbers = sorted(set(layers.values()))
    wanted = numbers[math.ceil(at * (len(numbers) - 1))]
    return [name for name, layer in layers.items() if layer == wanted]


def layer_counts(shapes: Shapes, percent: float, mask: MaskConfig, at: float) -> dict[str, int]:
    """Active entries per tensor.

    whole_layer: every entry of the layer. matched: as many entries as a random mask of the same sparsity has in the whole model, spread
    over the layer's tensors in proportion to their sizes; rounding follows the largest remainders. Raises UserError if the layer has fewer.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    inside = layer_tensors(shapes, at)
    if mask.budget is Budget.whole_layer:
        return {name: size if name in inside else 0 for name, size in sizes.items()}
    budget, layer_size = sum(floor_counts(shapes, percent, mask).values()), sum(sizes[name] for name in inside)
    if budget > layer_size:
        raise UserError(
            f"sparsity.percent={percent:g} leaves {budget:,} entries, but the layer of mask.family={mask.family} has only {layer_size:,}; "
            "raise sparsity.percent or choose mask.budget=whole_layer"
        )
    counts = {name: budget * sizes[name] // layer_size if name in inside else 0 for name in shapes}
    by_remainder = sorted(inside, key=lambda name: -(budget * sizes[name] % layer_size))
    for name in by_remainder[: budget - sum(counts.values())]:
        counts[name] += 1
    return counts


FAMILIES = {
    "first_layer": Family(random_entries, partial(layer_counts, at=0.0)),
    "middle_layer": Family(random_entries, partial(layer_counts, at=0.5)),
    "last_layer": Family(random_entries, partial(layer_counts, at=1.0)),
}
