"""Hydra's door to `mth.grid`: the launcher behind `hydra/launcher=local` and `hydra/launcher=slurm`, and the sweeper before it.

Hydra looks for launchers in the namespace package `hydra_plugins` only, and imports what it finds there at every start: keep this light.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CheckedSweeper(BasicSweeper):
    """Hydra's own sweeper, without composing every cell once more: `mth.cells.check` has validated them all before Hydra starts."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass


class GridLauncher(Launcher):
    """Hands the cells that the sweeper made to `mth.grid.launch`; the jobs run `mth.grid.worker`, not Hydra's task function."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns pass@1 after training (or None) per cell, so that optimizing sweepers have something to optimize."""
        from mth.cells import compose_cell, distinct, typed
        from mth.config import identity
        from mth.grid.launch import launch

        chosen = typed(self.config.hydra.overrides.hydra)
        cells = [compose_cell(overrides, initial_job_idx + i, chosen) for i, overrides in enumerate(job_overrides)]
        once = distinct(cells)
        if len(once) < len(cells):
            print(f"{len(cells) - len(once)} cells ask for the same run as an earlier one and are left out")
        passes = dict(zip((identity(cell.config) for cell in once), launch(once, Path(self.config.hydra.sweep.dir)), strict=True))
        return [
            JobReturn(overrides=list(cell.overrides), status=JobStatus.COMPLETED, _return_value=passes[identity(cell.config)])
            for cell in cells
        ]
