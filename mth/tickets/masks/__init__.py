"""Mask families, one file each, found by its dictionary `FAMILIES`. The files of conf/mask/ choose one with its options.

A family of the user's needs no file here: `mask.source=` names it.
"""

import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError, require
from mth.foundations.user_code import guarded, load, parse
from mth.tickets.indices import Indices, LazyMask, Shapes, Weights, count_active, index_dtype, total_parameters
from mth.tickets.masks.base import Family, floor_counts

KEY = "mask.source"


@cache
def families() -> dict[str, Family]:
    """All mask families by name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {name: family for module in modules for name, family in getattr(module, "FAMILIES", {}).items()}


def own_family(source: str) -> Family:
    """The family of the user's own code, whose functions raise UserError, in one line, where they fail or give what is no mask."""
    found, where = load(source, KEY), f"{KEY}={parse(source, KEY).shown}"
    require(
        isinstance(found, Family), f"{where} must be a Family(draw, counts, ...) (mth.tickets.masks.base), not a {type(found).__name__}"
    )
    family: Family = found

    def counts(shapes: Shapes, percent: float, mask: MaskConfig) -> dict[str, int]:
        with guarded(source, KEY, "cannot count"):
            numbers = {name: int(family.counts(shapes, percent, mask).get(name, 0)) for name in shapes}
        for name, number in numbers.items():
            size = math.prod(shapes[name])
            require(0 <= number <= size, f"{where}: counts gives {number} active entries for {name}, which has {size}")
        return numbers

    def draw(shapes: Shapes, counts: Mapping[str, int], mask_seed: int, mask: MaskConfig, weights: Weights | None) -> LazyMask:
        with guarded(source, KEY, "cannot draw"):
            lazy = family.draw(shapes, counts, mask_seed, mask, weights)

        def indices(name: str) -> np.ndarray | None:
            with guarded(source, KEY, f"cannot draw {name}"):
                drawn = lazy(name)
            return drawn if drawn is None else checked_indices(np.asarray(drawn), math.prod(shapes[name]), counts[name], name, where)

        return indices

    return replace(family, counts=counts, draw=draw)


def checked_indices(drawn: np.ndarray, size: int, count: int, name: str, where: str) -> np.ndarray:
    """The indices [count] of a tensor of `size` entries, in the type that tickets use. Raises UserError unless they are sorted and distinct."""
    good = drawn.ndim == 1 and (drawn.dtype.kind in "iu" or drawn.size == 0)
    require(good, f"{where}: draw gives no flat array of integers for {name}, but {drawn.dtype} {list(drawn.shape)}")
    require(drawn.size == count, f"{where}: draw gives {drawn.size} indices for {name}, and counts says {count}; both must agree")
    inside = drawn.size == 0 or (drawn[0] >= 0 and drawn[-1] < size and bool((np.diff(drawn.astype(np.int64)) > 0).all()))
    require(bool(inside), f"{where}: the indices of {name} must be sorted, distinct and from 0 to {size - 1}")
    return drawn.astype(index_dtype(size))


def find_family(mask: MaskConfig) -> tuple[Family, MaskConfig]:
    """The family of a configuration, and the configuration with the family's default options filled in.

    Raises UserError if there is no such family, or if the family has no such option.
    """
    family = own_family(mask.source) if mask.source is not None else families().get(mask.family)
    if family is None:
        raise UserError(f"mask.family={mask.family} is unknown; choose one of {', '.join(sorted(families()))}")
    for option in mask.options:
        if option not in family.options:
            raise UserError(
                f"mask.options.{option} is unknown; the options of mask.family={mask.family} are: {', '.join(family.options) or 'none'}"
            )
    return family, replace(mask, options={**family.options, **mask.options})


def active_counts(shapes: Shapes, percent: float, mask: MaskConfig) -> dict[str, int]:
    """Number of active entries per tensor, without drawing the mask. Raises UserError if the mask does not fit the model."""
    if percent == 0:
        return floor_counts(shapes, percent, mask)
    family, mask = find_family(mask)
    return family.counts(shapes, percent, mask)


def lazy_mask(shapes: Shapes, mask: MaskConfig | str, percent: float, mask_seed: int, weights: Weights | None = None) -> LazyMask:
    """A function from a tensor's name to its indices, which draws the mask one tensor at a time.

    mask: family and options, or the name of a family with its defaults. weights: base weights of the model, by tensor.
    Raises UserError if the mask does not fit the model, or if the family needs weights and none are given.
    """
    family, mask = find_family(MaskConfig(mask) if isinstance(mask, str) else mask)
    if family.needs_weights and weights is None:
        raise UserError(f"mask.family={mask.family} is chosen by the weights of the base model, which are not available here")
    return family.draw(shapes, active_counts(shapes, percent, mask), mask_seed, mask, weights)


def sample_mask(shapes: Shapes, mask: MaskConfig | str, percent: float, mask_seed: int, weights: Weights | None = None) -> Indices:
    """Indices of every tensor, in the order of `shapes`; arguments as in `lazy_mask`. A tied tensor must appear once.

    Raises UserError as `lazy_mask` does, and if no entry is active.
    """
    draw = lazy_mask(shapes, mask, percent, mask_seed, weights)
    indices = {name: draw(name) for name in shapes}
    if count_active(shapes, indices) == 0:
        total = total_parameters(shapes.values())
        raise UserError(f"sparsity.percent={percent} leaves no active entry in this model of {total:,} parameters; lower it")
    return indices
