"""Settings of the two launchers of grids (`hydra/launcher=local|slurm`): types, defaults, validation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mth.config import require
from mth.errors import UserError


@dataclass
class LocalLauncher:
    """One machine. jobs: cells at a time (null: one per visible GPU, one without GPUs); each gets one GPU and its share of the cores."""

    _target_: str = "hydra_plugins.mth_launcher.GridLauncher"
    kind: str = "local"
    jobs: int | None = None

    def __post_init__(self) -> None:
        require(self.jobs is None or self.jobs >= 1, f"hydra.launcher.jobs={self.jobs} must be at least 1")


@dataclass
class SlurmLauncher:
    """One sbatch array per set of equal settings. Names and units are submitit's.

    array_parallelism: cells at a time. signal_delay_s: how long before the time limit SLURM asks to save. max_num_timeout: how often a cell
    may hit its limit and go on. setup: shell lines before python. additional_parameters: further sbatch options.
    """

    _target_: str = "hydra_plugins.mth_launcher.GridLauncher"
    kind: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 240
    nodes: int = 1
    cpus_per_task: int = 4
    gpus_per_node: int | None = None
    mem_gb: float = 16.0
    array_parallelism: int = 20
    signal_delay_s: int = 120
    max_num_timeout: int = 100
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.nodes == 1, f"hydra.launcher.nodes={self.nodes} must be 1: a run uses one machine")
        for key in ("timeout_min", "cpus_per_task", "array_parallelism", "signal_delay_s"):
            require(getattr(self, key) >= 1, f"hydra.launcher.{key}={getattr(self, key)} must be at least 1")
        require(self.mem_gb > 0, f"hydra.launcher.mem_gb={self.mem_gb:g} must be positive")
        limit = self.timeout_min * 60
        require(
            self.signal_delay_s < limit, f"hydra.launcher.signal_delay_s={self.signal_delay_s} must be shorter than timeout_min ({limit} s)"
        )


LAUNCHERS = {"local": LocalLauncher, "slurm": SlurmLauncher}


def launcher_settings(node: Any, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Settings of a launcher of ours as plain data, with `key=value` changes, checked. Raises UserError for a key or value that does not fit."""
    try:
        schema = OmegaConf.structured(LAUNCHERS[node["kind"]])
        return dict(asdict(cast(Any, OmegaConf.to_object(OmegaConf.merge(schema, node, OmegaConf.from_dotlist(list(changes)))))))
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.launcher: {str(error).splitlines()[0]}") from error
