"""The interface of a mask family."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mth.config.schema import MaskConfig
from mth.tickets.indices import LazyMask, Shapes, Weights, active_count


def floor_counts(shapes: Shapes, percent: float, mask: MaskConfig) -> dict[str, int]:
    """Active entries per tensor by the floor rule (paper, section 2.2)."""
    return {name: active_count(math.prod(shape), percent) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Family:
    """A way to choose active entries.

    draw(shapes, counts, mask_seed, mask, weights) returns a function from a tensor's name to its sorted flat indices, so that a mask can be
    drawn one tensor at a time. `weights` may be None unless needs_weights is set.
    counts(shapes, percent, mask) returns the number of active entries per tensor, before anything is drawn.
    options: names and defaults of the keys of `mask.options`. Both functions find every option in `mask.options`.
    """

    draw: Callable[[Shapes, Mapping[str, int], int, MaskConfig, Weights | None], LazyMask]
    counts: Callable[[Shapes, float, MaskConfig], dict[str, int]] = floor_counts
    needs_weights: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
