"""Which runs an experiment of conf/experiment/ consists of, which of them are missing, and the command that produces them."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mth.analysis.collection import Run
from mth.config.cells import cells_of
from mth.config.compose import compose
from mth.config.identity import identity, identity_keys
from mth.config.options import options
from mth.config.recipes import load_run
from mth.config.schema import Config
from mth.config.stored import flat, to_plain
from mth.config.user_code import task_overrides

PIN = re.compile(r"(?<=:)(\w+)#[0-9a-f]+")  # of code, behind its name
TRAIN_SEED = "seed.train"
VARIED = ("sparsity", "mask", "mask_seed", "lr", "spectrum", TRAIN_SEED)  # what the experiments vary; all other keys are a setting
EVALUATED = ("task.grader", "eval.tasks", "eval.samples", "eval.temperature", "eval.max_tokens")  # of all evaluated tasks

PLAIN = re.compile(r"[\w./:+-]+")  # texts that Hydra's grammar reads without quotes


@dataclass(frozen=True)
class Need:
    """An experiment at one setting.

    runs: those at hand that belong to it. cells: identities of all its runs. missing: number of cells without a done run.
    command: runs the missing cells. mask_seeds: seeds that the experiment names.
    """

    experiment: str
    runs: list[Run]
    cells: list[str]
    missing: int
    command: str
    mask_seeds: frozenset[int] = frozenset()


def setting_key(config: Config) -> str:
    """Names a setting, which is all that the experiments hold fixed: model, task, steps, algorithm, prompts."""
    return identity_without(config, VARIED)


def identity_without(config: Config, ignore: Sequence[str]) -> str:
    """The keys of a configuration's identity as JSON, without the sections and dotted keys in `ignore`."""
    kept = {key: value for key, value in flat(identity_keys(config)).items() if not {key, key.split(".")[0]} & set(ignore)}
    return json.dumps(kept, sort_keys=True)


def need(experiment: str, config: Config, runs: Sequence[Run], ignore: Sequence[str] = ("mask_seed",)) -> Need:
    """The runs that belong to an experiment, and what is missing of it.

    config: any run of the setting. A run belongs if it equals one of the experiment's cells except for its training seed and `ignore`, so
    further masks, learning rates or levels count as well. A model given by path has no table of learning rates; for it every learning rate belongs.
    Raises UserError if the files in conf/ cannot express the setting.
    """
    arguments = [f"experiment={experiment}", f"model={config.model.name}", *task_overrides(config.task)]
    if config.model.name not in options("model"):  # conf/model has no file for it: `tiny` with a path
        arguments[1:2] = ["model=tiny", *([f"model.path={config.model.path}"] if config.model.path else [])]
    arguments += _evaluated(config)
    arguments += _overrides(_base(tuple(arguments)), config)
    cells = _cells(tuple(arguments))
    typed = arguments
    if any(cell.lr.value is None for cell in cells):
        ignore, typed = (*ignore, "lr"), [*arguments, "lr.value=RATE"]
    ignore = (*ignore, TRAIN_SEED)
    kinds = {identity_without(cell, ignore) for cell in cells}
    names = [identity(cell) for cell in cells]
    done = {run.identity for run in runs if run.done}
    command = " ".join(["python -m mth.train -m", *(shlex.quote(PIN.sub(r"\1", argument)) for argument in typed)])
    belonging = [run for run in runs if identity_without(run.config, ignore) in kinds]
    return Need(experiment, belonging, names, len(set(names) - done), command, frozenset(cell.mask_seed for cell in cells))


@lru_cache(maxsize=16)
def _base(arguments: tuple[str, ...]) -> Config:
    """The configuration of arguments. Settings of the same model and task share it."""
    return load_run(compose(arguments), arguments)


@lru_cache(maxsize=16)
def _cells(arguments: tuple[str, ...]) -> tuple[Config, ...]:
    """The cells of arguments. Figures of the same experiment share them."""
    return tuple(cell.config for cell in cells_of(list(arguments)))


def all_runs(runs: Sequence[Run]) -> Need:
    """The need of a figure without an experiment: takes every run, misses none."""
    return Need("", list(runs), [], 0, "")


def _evaluated(config: Config) -> list[str]:
    """Overrides that name the evaluated tasks, and what holds for all of them: a stored configuration may have that from another recipe."""
    if config.eval.tasks == [config.task.name]:
        return []
    values = flat(to_plain(config))
    return [f"{key}={_text(values[key])}" for key in EVALUATED]


def _overrides(base: Config, config: Config) -> list[str]:
    """Overrides that turn the setting of `base` into the setting of `config`."""
    ours, theirs, values = flat(identity_keys(base)), flat(identity_keys(config)), flat(to_plain(config))
    keys = [key for key in values if key.split(".")[0] not in VARIED and ours.get(key) != theirs.get(key)]
    return [f"{key}={_text(_value(key, values, config))}" for key in keys]


def _value(key: str, values: dict[str, Any], config: Config) -> Any:
    """The value of a key. What is null for an evaluated task is what `eval` says of it, because a null takes the recipe of that task."""
    if values[key] is None and key.startswith("eval.per_task."):
        _, _, task, name = key.split(".")
        return getattr(config.eval.of(task), name)
    return values[key]


def _text(value: Any) -> str:
    """A value as Hydra's override grammar writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
