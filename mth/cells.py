"""From a command line to the cells of its grid, each composed and validated before anything is launched."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mth.compose import MIXTURE, explain, hydra_session
from mth.config import Config, check_trainable, identity, load, require, rewrite_numbers
from mth.errors import UserError
from mth.launchers import LAUNCHERS, launcher_settings


@dataclass(frozen=True)
class Cell:
    """One run of a grid. overrides: what tells it from the others and what all share. name: its folder. launcher: resolved settings."""

    overrides: tuple[str, ...]
    name: str
    config: Config
    launcher: dict[str, Any]


def expand(arguments: Sequence[str], config_name: str = "config") -> tuple[bool, list[list[str]], list[str]]:
    """What a command line asks for: is it a grid, the overrides of every cell, and the overrides of Hydra's own settings.

    The sweep of an experiment file (`hydra.sweeper.params`) counts as if it had been typed. Raises UserError for what Hydra cannot parse.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = rewrite_numbers([argument for argument in arguments if not argument.startswith("-")])
    many = bool({"-m", "--multirun"} & set(arguments))
    try:
        with hydra_session() as hydra:
            master = hydra.compose_config(config_name, overrides, run_mode=RunMode.MULTIRUN, from_shell=True, with_log_configuration=False)
        many = many or master.hydra.mode is RunMode.MULTIRUN
        task, own = (typed(master.hydra.overrides[kind]) for kind in ("task", "hydra"))
        swept = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()] if many else []
        parsed = OverridesParser.create().parse_overrides([*swept, *task])
        cells = BasicSweeper.split_arguments(parsed, None)[0] if many else [task]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error)) from error
    return many, cells, own


def typed(overrides: Any) -> list[str]:
    """Overrides as they were typed: an interpolation in one of them is for each cell to resolve."""
    return [str(override) for override in cast(list[str], OmegaConf.to_container(overrides, resolve=False))]


def compose_cell(overrides: Sequence[str], index: int, hydra_overrides: Sequence[str] = (), config_name: str = "config") -> Cell:
    """Compose and validate one cell. Raises UserError. Cached, because checking and launching a grid both need every cell."""
    own = tuple(o for o in hydra_overrides if not o.startswith(("hydra.run.", "hydra.sweep.", "hydra.mode")))
    return _compose_cell(tuple(overrides), index, own, config_name)


@cache
def _compose_cell(overrides: tuple[str, ...], index: int, own: tuple[str, ...], config_name: str) -> Cell:
    require(rewrite_numbers(list(overrides)) == list(overrides), MIXTURE)  # a number among words was not rewritten
    pinned = ["run_dir=null"] if config_name == "config" and not any(o.startswith("run_dir=") for o in overrides) else []
    try:
        with hydra_session() as hydra:
            cfg = hydra.compose_config(
                config_name, [*pinned, *overrides, *own], run_mode=RunMode.RUN, from_shell=False, with_log_configuration=False
            )
        OmegaConf.set_readonly(cfg.hydra, False)
        with open_dict(cfg):
            cfg.hydra.job.num = index
            name, launcher = str(cfg.hydra.sweep.subdir), OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
            del cfg["hydra"]
        assert isinstance(launcher, dict)
        if launcher.get("kind") in LAUNCHERS:
            launcher = dict(launcher_settings(launcher))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error)) from error
    assert isinstance(cfg, DictConfig)
    return Cell(overrides, name, load(cfg), {str(key): value for key, value in launcher.items()})


def check(arguments: Sequence[str], config_name: str = "config") -> list[Cell]:
    """Every cell of a command line, composed and validated. Raises UserError naming the first bad cell."""
    many, all_overrides, hydra_overrides = expand(arguments, config_name)
    cells = []
    for index, overrides in enumerate(all_overrides):
        try:
            cells.append(compose_cell(overrides, index, hydra_overrides, config_name))
            if many and config_name == "config":
                check_trainable(cells[-1].config)
                require(cells[-1].launcher.get("kind") in LAUNCHERS, f"hydra/launcher= must be one of {', '.join(LAUNCHERS)}")
        except UserError as error:
            raise UserError(f"{error} (in the cell {' '.join(overrides)})" if len(all_overrides) > 1 else str(error)) from error
    return distinct(cells)


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without those that would repeat an earlier one, as full fine-tuning does for every mask of a product."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(identity(cell.config), cell)
    return list(first.values())
