"""Tasks: turn rows into episodes and replies into rewards. They know no model and no engine.

A task is one file here and one of the same name in conf/task/. The file defines `build(config) -> Task`, and `SOURCE`: the hub id of its
data, or None if it generates them. A file of the user's needs neither: `task.source=` names it, and `own` builds it.
"""

import importlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mth.config.schema import OF_A_TASK, Config, TaskConfig
from mth.config.user_code import NAMED_BY
from mth.foundations.errors import UserError, require
from mth.foundations.seeds import derive_seed
from mth.tasks.base import Episode, Task, prompt_of
from mth.tasks.data import looks_local
from mth.tasks.own import regraded
from mth.tasks.prompting import prompted


def task_module(name: str) -> Any:
    """The module of a task."""
    return importlib.import_module(f"{__name__}.{name}")


def module_of(config: TaskConfig) -> Any:
    """The module that builds the task of a configuration: by the library or the file that it comes from, else by its name."""
    kinds = (kind for kind, key in NAMED_BY.items() if getattr(config, key) is not None)
    return task_module(next(kinds, config.name))


def build_task(config: TaskConfig) -> Task:
    """Build the task of a configuration, with its prompts written. Raises UserError if its data are missing or unusable."""
    return prompted(regraded(module_of(config).build(config), config), config)


def load_tasks(config: Config) -> tuple[Task, dict[str, Task]]:
    """The training task, and the evaluation tasks by name. Warns of evaluated prompts that are also trained.

    Raises UserError if data are missing or unusable.
    """
    sections = eval_sections(config)
    train = build_task(train_section(config, sections))
    evaluated = {name: train if section is None else _eval_task(name, section) for name, section in sections.items()}
    trained = {prompt_of(episode) for episode in train.train} if config.task.holdout else set()
    for name, task in evaluated.items():
        both = sum(prompt_of(episode) in trained for episode in task.eval)
        if both:
            print(f"warning: {both} of {len(task.eval)} evaluation prompts of {name} are also trained; give other rows", file=sys.stderr)
    return train, evaluated


def train_section(config: Config, sections: dict[str, TaskConfig | None]) -> TaskConfig:
    """The configuration of the training task. Rows that were read are held out only if they are evaluated."""
    evaluated = None in sections.values()
    has_rows = (config.task.path or module_of(config.task).SOURCE) is not None
    return replace(config.task, holdout=config.task.holdout and (evaluated or not has_rows))


def eval_sections(config: Config) -> dict[str, TaskConfig | None]:
    """The configuration of each evaluation task by name, or None if it is the training task itself."""
    sections: dict[str, TaskConfig | None] = {}
    for name in config.eval.tasks or []:
        path = config.eval.paths.get(name)
        holdout = config.task.holdout and path is None  # data given for evaluation are evaluated whole
        own = config.eval.of(name)
        said = {key: value for key in OF_A_TASK if (value := getattr(own, key)) is not None}
        other: dict[str, Any] = dict.fromkeys(NAMED_BY.values()) | {"source": config.eval.sources.get(name), "options": {}}
        section = replace(config.task, name=name, path=path, holdout=holdout, **said, **(other if name != config.task.name else {}))
        same = name == config.task.name and path is None and all(getattr(config.task, key) == value for key, value in said.items())
        sections[name] = None if same else section
    return sections


def _eval_task(name: str, section: TaskConfig) -> Task:
    try:
        return build_task(section)
    except UserError as error:
        raise UserError(str(error).replace("task.path", f"eval.paths.{name}")) from error


def check_data(config: Config) -> None:
    """Raise UserError if local data are missing or unusable, or if a step needs more prompts than there are training rows.

    Does not fetch data from the hub. The run checks them when it loads them.
    """
    for name, path in config.eval.paths.items():
        missing = path is not None and looks_local(path) and not Path(path).exists()
        require(not missing, f"eval.paths.{name}={path} does not exist")
    for name, section in eval_sections(config).items():
        if section is not None and is_local(section):
            _eval_task(name, section)
    if is_local(config.task):
        check_rows(build_task(train_section(config, eval_sections(config))), config)


def is_local(config: TaskConfig) -> bool:
    """Returns True if a task generates its data or reads them from this machine."""
    source = config.path or module_of(config).SOURCE
    return source is None or looks_local(source)


def check_rows(task: Task, config: Config) -> None:
    """Raise UserError if a step needs more prompts than there are training rows."""
    count, size = config.prompts_per_step, len(task.train)
    if size < count:
        raise UserError(f"task {task.name} has {size} training rows, fewer than the {count} prompts of a step; lower train.batch_size")


def choose_eval(task: Task, samples: int, seed: int) -> list[Episode]:
    """Draw `samples` evaluation episodes, or take all if there are fewer. Depends on the seed and the task only."""
    if samples >= len(task.eval):
        return list(task.eval)
    chosen = random.Random(derive_seed("eval-rows", seed)).sample(range(len(task.eval)), samples)
    return [task.eval[i] for i in sorted(chosen)]
