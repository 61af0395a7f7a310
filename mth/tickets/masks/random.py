"""`mask=random`: entries of each tensor, uniform without replacement (paper, section 2.2)."""

import math
from collections.abc import Mapping

import numpy as np

from mth.config.schema import MaskConfig
from mth.tickets.indices import LazyMask, Shapes, Weights
from mth.tickets.masks.base import Family
from mth.tickets.sampling import sample_without_replacement, tensor_stream


def random_entries(shapes: Shapes, counts: Mapping[str, int], mask_seed: int, mask: MaskConfig, weights: Weights | None) -> LazyMask:
    """Draw `counts[name]` entries of each tensor at random."""

    def draw(name: str) -> np.ndarray | None:
        size, count = math.prod(shapes[name]), counts[name]
        return None if count == size else sample_without_replacement(tensor_stream(mask_seed, name), size, count)

    return draw


FAMILIES = {"random": Family(random_entries)}
