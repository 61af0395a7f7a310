"""Settings of the two launchers of grids: `hydra/launcher=local` and `hydra/launcher=slurm`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from mth.config.fields import check_ranges, key
from mth.foundations.errors import UserError, first_line, require

TARGET = "hydra_plugins.mth_launcher.GridLauncher"


@dataclass
class LocalLauncher:
    """Cells as processes on this machine; each gets one GPU and its share of the cores."""

    _target_: str = TARGET
    kind: str = "local"
    jobs: int | None = key(None, "cells at a time; null: one per visible GPU, one without GPUs", least=1)
    resident: bool = key(True, "load the model once and start each cell from there; false: each cell loads it itself")

    def __post_init__(self) -> None:
        check_ranges(self, prefix="hydra.launcher.")


@dataclass
class SlurmLauncher:
    """Cells as SLURM jobs, one array per set of equal settings. Names and units are submitit's."""

    _target_: str = TARGET
    kind: str = "slurm"
    partition: str | None = key(None, "partition")
    account: str | None = key(None, "account")
    qos: str | None = key(None, "quality of service")
    constraint: str | None = key(None, "required node features")
    timeout_min: int = key(240, "time limit of a job, in minutes", least=1)
    nodes: int = key(1, "machines per cell; must be 1", least=1)
    cpus_per_task: int = key(4, "cores per cell", least=1)
    gpus_per_node: int | None = key(None, "GPUs per cell; null: one where the model needs it, else none", least=0)
    mem_gb: float = key(16.0, "memory per cell, in GB", above=0)
    array_parallelism: int = key(20, "cells at a time", least=1)
    signal_delay_s: int = key(120, "how long before the time limit a cell is asked to save, in seconds", least=1)
    max_num_timeout: int = key(100, "how often a cell may reach its time limit and go on", least=0)
    setup: list[str] = key([], "shell lines before python; one that fails ends the job")
    additional_parameters: dict[str, Any] = key({}, "further sbatch options")

    def __post_init__(self) -> None:
        check_ranges(self, prefix="hydra.launcher.")
        require(self.nodes == 1, f"hydra.launcher.nodes={self.nodes} must be 1: a run uses one machine")
        limit = self.timeout_min * 60
        require(
            self.signal_delay_s < limit, f"hydra.launcher.signal_delay_s={self.signal_delay_s} must be shorter than timeout_min ({limit} s)"
        )


LAUNCHERS = {"local": LocalLauncher, "slurm": SlurmLauncher}


def launcher_settings(node: Any, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Settings of a launcher as plain data, with `key=value` changes, checked. Raises UserError for a key or value that does not fit."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        schema = OmegaConf.structured(LAUNCHERS[node["kind"]])
        return dict(asdict(cast(Any, OmegaConf.to_object(OmegaConf.merge(schema, node, OmegaConf.from_dotlist(list(changes)))))))
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.launcher: {first_line(error)}") from error
