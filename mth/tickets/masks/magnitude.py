"""`mask=magnitude`: the entries of each tensor with the largest or the smallest absolute value in the base model."""

from collections.abc import Mapping

import numpy as np

from mth.config.choices import Magnitude
from mth.config.schema import MaskConfig
from mth.tickets.indices import LazyMask, Shapes, Weights, index_dtype
from mth.tickets.masks.base import Family


def by_magnitude(shapes: Shapes, counts: Mapping[str, int], mask_seed: int, mask: MaskConfig, weights: Weights | None) -> LazyMask:
    """Take the `counts[name]` largest or smallest entries of each tensor. Among equal entries the first ones count."""
    assert weights is not None
    return lambda name: top_entries(weights(name), counts[name], mask.magnitude is Magnitude.largest)


def top_entries(weight: np.ndarray, count: int, largest: bool) -> np.ndarray | None:
    """Sorted indices of the `count` largest (else smallest) absolute values of a flat tensor [n], or None for all. O(n) time."""
    if count == weight.size:
        return None
    magnitude = np.abs(weight)
    key = -magnitude if largest else magnitude
    if count == 0:
        return np.empty(0, dtype=index_dtype(weight.size))
    threshold = np.partition(key, count - 1)[count - 1]
    chosen = key < threshold
    chosen[np.flatnonzero(key == threshold)[: count - int(chosen.sum())]] = True
    return np.flatnonzero(chosen).astype(index_dtype(weight.size))


FAMILIES = {"magnitude": Family(by_magnitude, needs_weights=True)}
