"""Mask families, one file each, found by its dictionary `FAMILIES`. The files of conf/mask/ choose one with its options."""

import importlib
import pkgutil
from dataclasses import replace
from functools import cache

from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets.indices import Indices, LazyMask, Shapes, Weights, count_active, total_parameters
from mth.tickets.masks.base import Family, floor_counts


@cache
def families() -> dict[str, Family]:
    """All mask families by name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {name: family for module in modules for name, family in getattr(module, "FAMILIES", {}).items()}


def find_family(mask: MaskConfig) -> tuple[Family, MaskConfig]:
    """The family of a configuration, and the configuration with the family's default options filled in.

    Raises UserError if there is no such family, or if the family has no such option.
    """
    family = families().get(mask.family)
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
