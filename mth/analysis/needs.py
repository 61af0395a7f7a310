"""Which runs a figure needs, read from conf/experiment/, and the command that produces the ones that are missing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

from mth.analysis.runs import Run
from mth.cells import expand
from mth.compose import compose
from mth.config import TASK_OF, Config, essence, flat, identity, load

# What the paper's experiments vary; everything else together is a setting.
VARIED = ("sparsity", "mask", "mask_seed", "lr", "spectrum")
VALUE_KEYS = ("mask_seed",)


@dataclass(frozen=True)
class Need:
    """runs: of the setting that belong to the experiment. cells: identities it consists of. missing: how many of them are not done.

    mask_seeds: those that the experiment names.
    """

    experiment: str
    runs: list[Run]
    cells: list[str]
    missing: int
    command: str
    mask_seeds: frozenset[int] = frozenset()


def setting(config: Config) -> str:
    """Names everything that the experiments hold fixed: model, task, steps, algorithm, seeds."""
    return json.dumps({key: value for key, value in essence(config).items() if key not in VARIED}, sort_keys=True)


def kind(config: Config, ignore: Sequence[str]) -> str:
    """What is left of a configuration's identity without the sections or keys in `ignore`."""
    return json.dumps({key: value for key, value in essence(config).items() if key not in ignore}, sort_keys=True)


def need(experiment: str, config: Config, runs: Sequence[Run], ignore: Sequence[str] = ("mask_seed",)) -> Need:
    """The runs of a setting (that of `config`) that belong to an experiment, and what is missing of it.

    A run belongs when it is one of the experiment's cells up to `ignore`: further masks, learning rates or levels count as well. Learning rates of a
    model given by path, which has no table of them, are all its own.
    """
    arguments = [f"experiment={experiment}", f"model={config.model.name}", f"task={config.task.name}"]
    if config.model.name not in TASK_OF:  # no file in conf/model: that of `tiny` with a path
        arguments[1:2] = ["model=tiny", *([f"model.path={config.model.path}"] if config.model.path else [])]
    arguments += _differences(load(compose(arguments)), config)
    cells = cells_of(arguments)
    typed = arguments
    if any(cell.lr.value is None for cell in cells):
        ignore, typed = (*ignore, "lr"), [*arguments, "lr.value=RATE"]
    kinds = {kind(cell, ignore) for cell in cells}
    names = list(dict.fromkeys(identity(cell) for cell in cells))
    done = {run.identity for run in runs if run.done}
    command = " ".join(["python -m mth.train -m", *(_quoted(argument) for argument in typed)])
    belonging = [run for run in runs if kind(run.config, ignore) in kinds]
    return Need(experiment, belonging, names, len(set(names) - done), command, frozenset(cell.mask_seed for cell in cells))


def cells_of(arguments: Sequence[str]) -> list[Config]:
    """Configurations of all cells of a command line. Composes once for each choice of groups and sets single values itself."""
    composed: dict[tuple[str, ...], Any] = {}
    configs = []
    for overrides in expand(arguments)[1]:
        values = {key: value for key, _, value in (o.partition("=") for o in overrides) if "." in key or key in VALUE_KEYS}
        groups = tuple(o for o in overrides if o.partition("=")[0] not in values)
        if groups not in composed:
            composed[groups] = compose(groups)
        cfg = composed[groups].copy()
        for key, value in values.items():
            OmegaConf.update(cfg, key, yaml.safe_load(value))
        configs.append(load(cfg))
    return configs


def _differences(base: Config, config: Config) -> list[str]:
    """Overrides that lead from one setting to the other."""
    here, there = flat(essence(base)), flat(essence(config))
    keys = [key for key in there if key.split(".")[0] not in VARIED and here[key] != there[key]]
    return [f"{key}={_text(there[key])}" for key in keys]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(argument: str) -> str:
    return f"'{argument}'" if set(argument) & set(" []{}()*?$&;|<>") else argument
