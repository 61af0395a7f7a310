"""Hydra's door to `mth.grid`: the sweeper that expands a grid, and the launcher behind `hydra/launcher=local` and `hydra/launcher=slurm`.

Hydra finds plugins only in the namespace package `hydra_plugins` and imports them at every start: keep this light.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(Sweeper):
    """Hands all combinations of the swept values to the launcher at once. `mth.config.cells` composes and validates each of them once."""

    def __init__(self, params: dict[str, str] | None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from mth.config.launchers import LAUNCHERS
        from mth.foundations.errors import require

        require(config.hydra.launcher.get("kind") in LAUNCHERS, f"hydra/launcher= must be one of {', '.join(LAUNCHERS)}")
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        from mth.config.cells import combinations

        cells = combinations(self.params, arguments)
        results = self.launcher.launch(cells, 0)
        OmegaConf.save(self.config, self.launcher.folder / "multirun.yaml")
        return [results]


class GridLauncher(Launcher):
    """Runs the cells of any sweeper through `mth.grid.launch`; their processes run `mth.grid.worker`, not Hydra's task function."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from mth.grid.placement import holds_time

        self.config, self.folder, self.new = config, Path(config.hydra.sweep.dir).absolute(), holds_time(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns pass@1 after training (or None) per cell, for sweepers that optimize. All calls of a sweeper share one folder."""
        from mth.config.cells import compose_cells, distinct
        from mth.config.identity import identity
        from mth.grid.launch import launch
        from mth.grid.placement import new_folder

        chosen = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        cells = compose_cells([list(overrides) for overrides in job_overrides], [str(o) for o in chosen or ()], initial_job_idx)
        once = distinct(cells)
        if len(once) < len(cells):
            print(f"{len(cells) - len(once)} cells ask for the same run as an earlier one and are left out")
        with new_folder(self.folder) if self.new else nullcontext(self.folder) as folder:
            self.folder, self.new = folder, False
            passes = dict(zip((identity(cell.config) for cell in once), launch(once, folder), strict=True))
        return [
            JobReturn(overrides=list(cell.overrides), status=JobStatus.COMPLETED, _return_value=passes[identity(cell.config)])
            for cell in cells
        ]
