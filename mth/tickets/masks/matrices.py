"""`mask=matrices`: random entries of the weight matrices inside the decoder layers: no embedding, no head, no bias, no norm."""

import math

from mth.config.schema import MaskConfig
from mth.foundations.errors import require
from mth.tickets.indices import Shapes, active_count
from mth.tickets.masks.base import Family
from mth.tickets.masks.layer import LAYER
from mth.tickets.masks.random import random_entries


def matrix_counts(shapes: Shapes, percent: float, mask: MaskConfig) -> dict[str, int]:
    """Active entries per tensor: the floor rule inside decoder layers, 0 elsewhere. Raises UserError if no tensor is named by layer."""
    inside = {name for name, shape in shapes.items() if len(shape) == 2 and LAYER.search(name) is not None}
    require(bool(inside), "mask.family=matrices needs a model whose tensors are named by decoder layer")
    return {name: active_count(math.prod(shape), percent) if name in inside else 0 for name, shape in shapes.items()}


FAMILIES = {"matrices": Family(random_entries, matrix_counts)}
