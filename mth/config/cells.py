"""From a command line to the cells of its grid, each composed once and validated."""

import itertools
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mth.config.compose import compose_all, composer, explain, without_hydra
from mth.config.identity import identity
from mth.config.launchers import LAUNCHERS, launcher_settings
from mth.config.options import groups
from mth.config.overrides import MIXTURE, as_overrides, rewrite_numbers, with_task
from mth.config.recipes import with_own_recipes
from mth.config.schema import Config
from mth.config.stored import refuse_unknown, to_object
from mth.foundations.errors import UserError, require


@dataclass(frozen=True)
class Cell:
    """One run. overrides: what a command line or grid says of it. name: its folder in a grid. launcher: resolved settings, of a grid only."""

    overrides: tuple[str, ...]
    name: str
    config: Config
    launcher: dict[str, Any]


class Command(NamedTuple):
    """What a command line asks for. is_grid: with -m, or by its experiment file. cells: overrides of each. hydra: of Hydra's own settings."""

    is_grid: bool
    cells: list[list[str]]
    hydra: list[str]


def read_command(arguments: Sequence[str]) -> Command:
    """Expand a command line. The sweep of an experiment file (`hydra.sweeper.params`) counts as if it had been typed.

    Raises UserError for what Hydra cannot parse or compose.
    """
    with composer():
        parsed = _parse(rewrite_numbers([each for each in as_overrides(arguments) if not each.startswith("-")]))
        own = [typed(override) for override in parsed if override.is_hydra_override()]
        task = [override for override in parsed if not override.is_hydra_override()]
        master = compose_all([*own, *(_alternatives(override)[0] for override in task)]).hydra
        is_grid = bool({"-m", "--multirun"} & set(arguments)) or master.mode is RunMode.MULTIRUN
        for override in task:
            require(is_grid or not override.is_sweep_override(), f"{override.input_line} asks for several runs: add -m")
        overrides = [typed(override) for override in task]
        cells = combinations(master.sweeper.get("params") or {}, overrides) if is_grid else [overrides]
        return Command(is_grid, cells, own)


def combinations(params: Any, overrides: Sequence[str]) -> list[list[str]]:
    """Overrides of every cell: the product of all comma-separated values. Each model of a sweep gets its own task, as a single one does.

    params: the sweep of an experiment. A typed override replaces it, a choice of a group also what is swept below: `sparsity=dense` replaces
    `sparsity.percent`.
    """
    parsed = _parse(list(overrides))
    chosen = {override.key_or_group for override in parsed} & set(groups())
    swept = [f"{key}={value}" for key, value in params.items() if "." not in key or key.partition(".")[0] not in chosen]
    by_key = {override.get_key_element(): _alternatives(override) for override in [*_parse(swept), *parsed]}
    cells = [list(cell) for cell in itertools.product(*by_key.values())]
    return [with_task(cell) for cell in cells] if "model" in chosen else cells


def typed(override: Override) -> str:
    """An override as it was typed."""
    return str(override.input_line)


def _parse(overrides: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(overrides)


@cache
def _parse_one(override: str) -> Override:
    return _parse([override])[0]


def _alternatives(override: Override) -> list[str]:
    """An override for each value of a sweep; the override itself if it sweeps nothing."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}" if not override.is_delete() else typed(override)]
    require(override.is_discrete_sweep(), f"{override.input_line}: a grid takes values or range(), not an interval")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def compose_cells(cells: Sequence[Sequence[str]], hydra_overrides: Sequence[str] = (), first_index: int = 0) -> list[Cell]:
    """Compose and validate every cell of a grid. Raises UserError naming the first bad one, or if they ask for different folders of the grid.

    Hydra composes once per choice of groups; what else tells cells apart are single values, which are set on a copy.
    """
    for override in hydra_overrides:
        require(not override.startswith(("hydra.run.", "hydra.sweep.dir")), f"{override}: give the folder of a grid with run_dir=")
    own = [override for override in hydra_overrides if not override.startswith("hydra.mode")]
    composed: dict[tuple[str, ...], DictConfig] = {}
    result = []
    with composer():
        for index, overrides in enumerate(cells, first_index):
            try:
                result.append(_compose_cell(overrides, index, own, composed))
            except (UserError, HydraException, OmegaConfBaseException, ValueError) as error:
                text = str(error) if isinstance(error, UserError) else explain(error)
                raise UserError(f"{text} (in the cell {' '.join(overrides)})" if len(cells) > 1 else text) from error
    folders = sorted({str(cell.config.run_dir) for cell in result})
    timed = any(override.startswith("run_dir=") and "${now:" in override for overrides in cells for override in overrides)
    require(
        len(folders) <= 1 or timed,
        f"run_dir={folders[0]} and run_dir={folders[-1]}: a grid has one folder; tell its cells apart with hydra.sweep.subdir=",
    )
    return result


def _compose_cell(overrides: Sequence[str], index: int, own: list[str], composed: dict[tuple[str, ...], DictConfig]) -> Cell:
    require(rewrite_numbers(list(overrides)) == list(overrides), MIXTURE)  # a number among words was not rewritten
    single = [override for override in overrides if _is_single_value(override)]
    choices = tuple(override for override in overrides if override not in single)
    if choices not in composed:
        composed[choices] = compose_all([*choices, *own])
        refuse_unknown(without_hydra(deepcopy(composed[choices])))
    cfg = deepcopy(composed[choices])
    try:
        for override in single:
            OmegaConf.update(cfg, override.partition("=")[0], _parse_one(override).value(), merge=True)
    except OmegaConfBaseException:
        cfg = compose_all([*overrides, *own])  # Hydra says better what is wrong
    with open_dict(cfg.hydra.job):
        cfg.hydra.job.num = index
    name, launcher = str(cfg.hydra.sweep.subdir), OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    require(launcher.get("kind") in LAUNCHERS, f"hydra/launcher= must be one of {', '.join(LAUNCHERS)}")
    config = with_own_recipes(to_object(without_hydra(cfg)), overrides)
    return Cell(tuple(overrides), name, config, launcher_settings(launcher))


def _is_single_value(override: str) -> bool:
    """Whether an override sets one value that exists, and chooses no group."""
    key = override.partition("=")[0]
    return ("." in key and key[0] not in "+~" and "@" not in key) or key in ("mask_seed", "run_dir")


def cells_of(arguments: Sequence[str]) -> list[Cell]:
    """Every cell of a command line, composed and validated, without those that repeat an earlier one. Raises UserError."""
    command = read_command(arguments)
    return distinct(compose_cells(command.cells, command.hydra))


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without those that ask for the same run as an earlier one, as full fine-tuning does for every mask of a product.

    Raises UserError if two of them share a folder, or if the name of a folder is a path.
    """
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(identity(cell.config), cell)
    for name, count in Counter(cell.name for cell in first.values()).items():
        require(name == Path(name).name, f"hydra.sweep.subdir={name} must name a folder, not a path")
        require(count == 1, f"hydra.sweep.subdir={name} is the same for {count} cells; add what tells them apart, or ${{hydra.job.num}}")
    return list(first.values())
