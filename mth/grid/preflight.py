"""Checks every cell of a grid, or a single run, before anything starts: what keys alone cannot show."""

import math
from collections.abc import Sequence
from typing import Any

from mth.config.cells import Cell
from mth.config.checks import check_context, check_trainable
from mth.config.schema import Config
from mth.config.stored import to_plain
from mth.config.user_code import GROUPS, entry_points
from mth.foundations.errors import UserError
from mth.grid.capacity import refuse_too_large
from mth.grid.memory import ModelFacts, active_counts, facts_of_models
from mth.tasks import check_data

ENTRIES_OF_A_TRIAL = 16  # active entries, at least, of the tensor in which a family of the user's own is tried


def preflight(cells: Sequence[Cell], elsewhere: bool = False) -> dict[str, ModelFacts]:
    """Check all cells. Returns the facts of their models, from which a plan is made. elsewhere: they will not run on this machine.

    Raises UserError, naming the cell, if it has no learning rate, if its local data are missing or too few for a step, if its mask leaves
    no active entry, if a reply is longer than the model's context, or if the cells that would run at a time do not fit into memory. Loads no
    weights, and fetches nothing from a hub but the configuration of a model that is there.
    """
    from mth.models.shapes import usable_context  # loads torch
    from mth.training.losses import ratio_rule

    for group in GROUPS:
        entry_points(group)  # refuses names that exist
    models: dict[str, ModelFacts] = {}
    data: set[str] = set()
    for cell in cells:
        try:
            check_trainable(cell.config)
            if (needed := _data_key(cell.config)) not in data:
                check_data(cell.config)
                data.add(needed)
            ratio_rule(cell.config.algorithm)
            facts = facts_of_models(cell.config.model, models)
            if cell.config.mask.source is not None:
                try_family(facts.shapes, cell.config)
            if sum(active_counts(cell.config, facts)) == 0:
                raise UserError(f"sparsity.percent={cell.config.sparsity.percent} leaves no active entry in this model; lower it")
            check_context(cell.config, usable_context(facts.architecture))
        except UserError as error:
            raise UserError(f"{error} (in the cell {' '.join(cell.overrides)})" if len(cells) > 1 else str(error)) from error
    if not elsewhere:
        refuse_too_large(cells, models)
    return models


def _data_key(config: Config) -> str:
    """Names what `check_data` looks at."""
    return repr((to_plain(config.task), config.eval.tasks, config.eval.paths, config.eval.sources, config.prompts_per_step))


def try_family(shapes: Any, config: Config) -> None:
    """Draw one small tensor of the user's own mask family. One that needs weights is tried when the run starts.

    Raises UserError as the family does.
    """
    from mth.tickets.masks import active_counts as counts_of
    from mth.tickets.masks import find_family, lazy_mask

    percent = config.sparsity.percent
    counts = counts_of(shapes, percent, config.mask)
    most = max(counts.values())
    some = [name for name, count in counts.items() if count >= min(most, ENTRIES_OF_A_TRIAL)]
    if most and not find_family(config.mask)[0].needs_weights:
        lazy_mask(shapes, config.mask, percent, config.mask_seed)(min(some, key=lambda name: math.prod(shapes[name])))
