"""How the mask of an attached ticket was chosen, as plain data: a family with its options and seed, or the entries themselves."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mth.config.schema import Config, MaskConfig
from mth.config.stored import literal, load, to_plain
from mth.foundations.errors import UserError, first_line, require
from mth.tickets.indices import Indices, Weights, active_count, count_active, index_dtype
from mth.tickets.masks import sample_mask
from mth.tickets.masks.base import Family

MaskFunction = Callable[[str, torch.Tensor, int, int], Any]
Mask = str | Family | Mapping[str, Any]
FAMILY_KEYS = {field.name for field in fields(MaskConfig)} - {"family", "options", "source"}  # a recipe that was loaded runs no code
CHOSEN = ("indices", "function")  # no recipe draws these again: a saved ticket holds their indices


def draw_recipe(
    parameters: Mapping[str, torch.Tensor], sparsity: float | None, mask: Any, seed: int | None, options: dict[str, Any], weights: Weights
) -> tuple[dict[str, Any], Indices]:
    """The recipe of a mask and its indices; arguments as in `mth.attach`. Raises UserError if they do not fit the model or each other."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    recipe: dict[str, Any]
    if isinstance(mask, str):
        recipe = family_recipe(mask, sparsity, seed, options)
        return recipe, draw_family(recipe, shapes, weights)
    if isinstance(mask, Mapping):
        require(
            sparsity is None and seed is None and not options,
            "mask gives the entries themselves: leave out sparsity, mask_seed and options",
        )
        found = {name: mask.get(name, ()) for name in shapes}
        unknown = [name for name in mask if name not in shapes]
        require(not unknown, f"mask: the model has no tensor {', '.join(map(repr, unknown[:3]))}; see model.named_parameters()")
        recipe = {"family": "indices"}
    else:
        percent, seed = checked(sparsity, "random", seed, {}).sparsity.percent, seed or 0
        recipe = {"family": "function", "name": getattr(mask, "__name__", type(mask).__name__), "sparsity": percent, "mask_seed": seed}
        if isinstance(mask, Family):
            settings = MaskConfig(options={**mask.options, **options})
            draw = mask.draw(shapes, mask.counts(shapes, percent, settings), seed, settings, weights)
            found = {name: draw(name) for name in shapes}
        else:
            require(callable(mask), f"mask must be a name, a function or a dictionary of entries, not {type(mask).__name__}")
            require(not options, f"{', '.join(options)}: a mask function takes no options; bind them with functools.partial")
            found = {name: mask(name, p.detach(), active_count(p.numel(), percent), seed) for name, p in parameters.items()}
    indices = {name: sorted_indices(name, shapes[name], entries) for name, entries in found.items()}
    require(count_active(shapes, indices) > 0, "the mask leaves no active entry in this model; choose at least one")
    return recipe, indices


def family_recipe(family: str, sparsity: float | None, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a named family. Raises UserError for an unknown family or option, and for a number out of range."""
    config = checked(sparsity, family, seed, options)
    return {**to_plain(config.mask), "sparsity": config.sparsity.percent, "mask_seed": config.mask_seed}


def draw_family(recipe: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], weights: Weights) -> Indices:
    """Draw the mask of a recipe. Raises UserError as `sample_mask` does."""
    options = {key: value for key, value in recipe.items() if key in FAMILY_KEYS and value is not None} | dict(recipe.get("options") or {})
    config = checked(recipe.get("sparsity"), recipe["family"], recipe.get("mask_seed"), options)
    return sample_mask(shapes, config.mask, config.sparsity.percent, config.mask_seed, weights)


def checked(sparsity: float | None, family: str, seed: int | None, options: dict[str, Any]) -> Config:
    """The configuration of `python -m mth.train` with this mask. Keys that are None have its defaults."""
    own = {key: value for key, value in options.items() if key in FAMILY_KEYS}
    others = {key: value for key, value in options.items() if key not in FAMILY_KEYS}
    given: dict[str, Any] = {"mask": {"family": family, "options": others, **own}}
    given |= {} if sparsity is None else {"sparsity": {"percent": sparsity}}
    given |= {} if seed is None else {"mask_seed": seed}
    try:
        return load(OmegaConf.merge(OmegaConf.structured(Config), literal(given)))
    except OmegaConfBaseException as error:
        raise UserError(f"sparsity, mask, mask_seed or an option: {first_line(error)}") from error


def sorted_indices(name: str, shape: tuple[int, ...], entries: Any) -> np.ndarray | None:
    """Flat indices of a tensor in order, None for all of them. Raises UserError naming the tensor if they do not fit it."""
    if entries is None:
        return None
    found = np.asarray(entries.detach().cpu() if isinstance(entries, torch.Tensor) else entries)
    size = int(np.prod(shape))
    if found.dtype == bool:
        require(found.size == size, f"mask of {name}: {found.size:,} booleans for a tensor of {size:,} entries")
        found = np.flatnonzero(found)
    require(found.size == 0 or np.issubdtype(found.dtype, np.integer), f"mask of {name}: entries must be integers or booleans")
    distinct = np.unique(found).astype(np.int64)
    require(distinct.size == found.size, f"mask of {name}: an index is given twice")
    inside = distinct.size == 0 or (distinct[0] >= 0 and distinct[-1] < size)
    require(inside, f"mask of {name}: an index is outside of the tensor, which has {size:,} entries")
    return None if distinct.size == size and size > 0 else distinct.astype(index_dtype(size))
