"""Checks every cell of a grid, or a single run, before anything starts: what keys alone cannot show."""

from collections.abc import Sequence

from mth.config.cells import Cell
from mth.config.checks import check_context, check_trainable
from mth.config.schema import Config
from mth.config.stored import to_plain
from mth.foundations.errors import UserError
from mth.grid.capacity import refuse_too_large
from mth.grid.memory import ModelFacts, active_counts, facts_of_models
from mth.runs.trackers.tracker import require_installed
from mth.tasks import check_data


def preflight(cells: Sequence[Cell]) -> dict[str, ModelFacts]:
    """Check all cells. Returns the facts of their models, from which a plan is made.

    Raises UserError, naming the cell, if it has no learning rate, if a tracker's package is missing, if its local data are missing or too few for a step, if its mask leaves
    no active entry, if a reply is longer than the model's context, or if the cells that would run at a time do not fit into memory. Loads no
    weights, and fetches nothing from a hub but the configuration of a model that is there.
    """
    from mth.models.shapes import usable_context  # loads torch

    models: dict[str, ModelFacts] = {}
    data: set[str] = set()
    for cell in cells:
        try:
            check_trainable(cell.config)
            require_installed(cell.config)
            if (needed := _data_key(cell.config)) not in data:
                check_data(cell.config)
                data.add(needed)
            facts = facts_of_models(cell.config.model, models)
            if sum(active_counts(cell.config, facts)) == 0:
                raise UserError(f"sparsity.percent={cell.config.sparsity.percent} leaves no active entry in this model; lower it")
            check_context(cell.config, usable_context(facts.architecture))
        except UserError as error:
            raise UserError(f"{error} (in the cell {' '.join(cell.overrides)})" if len(cells) > 1 else str(error)) from error
    refuse_too_large(cells, models)
    return models


def _data_key(config: Config) -> str:
    """Names what `check_data` looks at."""
    return repr((to_plain(config.task), config.eval.tasks, config.eval.paths, config.prompts_per_step))
