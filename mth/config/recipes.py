"""How a task is evaluated that is not trained: by its own files in conf/task/ and conf/recipe/, unless the command line says otherwise."""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig

from mth.config.choices import Grader, PromptFormat
from mth.config.options import options
from mth.config.schema import OF_A_TASK, Config, EvalConfig, EvalOverride, TaskConfig
from mth.config.stored import flat, load
from mth.foundations.paths import conf_dir

KEYS = tuple(field.name for field in fields(EvalOverride))


def load_run(cfg: DictConfig | ListConfig, overrides: Sequence[str]) -> Config:
    """The validated configuration of a run, from a composed one and the overrides that it was composed from. Raises UserError."""
    return with_own_recipes(load(cfg), overrides)


def with_own_recipes(config: Config, overrides: Sequence[str], as_given: Collection[str] | None = None) -> Config:
    """The configuration in which every evaluated task has the limits, samples, temperature, grader and data of its own recipe.

    A value that the overrides or their experiment file set stays: `eval.samples` for all tasks, `eval.per_task.<task>.samples` for one.
    The tasks in `as_given` (None: the trained task) stay as they are.
    """
    kept = [config.task.name] if as_given is None else as_given
    others = [task for task in config.eval.tasks or [] if task not in kept]
    if not others:
        return config
    typed, per_task, paths = typed_keys(overrides), dict(config.eval.per_task), dict(config.eval.paths)
    for task in others:
        recipe, own = own_recipe(config.model.name, task), vars(per_task.get(task, EvalOverride()))
        free = [
            key for key in KEYS if not typed & {f"eval.{key}", f"eval.per_task.{task}.{key}", *(["task.grader"] if key == "grader" else [])}
        ]
        per_task[task] = EvalOverride(**{**own, **{key: recipe[key] for key in free if key in recipe}})
        if paths.get(task) is None and f"eval.paths.{task}" not in typed:
            paths[task] = recipe.get("path")
    return replace(config, eval=replace(config.eval, per_task=per_task, paths=paths))


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """Dotted keys that overrides set, and those of the experiment file that they choose."""
    pairs = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    chosen = [value for key, value in pairs if key == "experiment" and value in options("experiment")]
    return {key for key, _ in pairs} | {key for name in chosen for key in flat(_read("experiment", name))}


def own_recipe(model: str, task: str) -> dict[str, Any]:
    """What the files in conf/ say of a task's evaluation: KEYS, and `path` if the model's recipe names data.

    A model that conf/model does not name has the recipes of `tiny`; where a model has none for the task, another model's recipe gives it.
    """
    name = model if model in options("model") else "tiny"
    said_of_task, usual = _read("task", task), TaskConfig()
    found: dict[str, Any] = {key: said_of_task.get(key, getattr(usual, key)) for key in OF_A_TASK}
    for key, kind in (("grader", Grader), ("prompt_format", PromptFormat)):
        found[key] = kind[found[key]] if isinstance(found[key], str) else found[key]
    own = f"{name}+{task}"
    others = [recipe for recipe in options("recipe") if recipe.partition("+")[2] == task]
    recipe = _read("recipe", own if own in others else others[0]) if others else {}
    if recipe:
        said, standard = recipe.get("eval", {}), EvalConfig()
        found |= {key: said.get(key, getattr(standard, key)) for key in ("samples", "replies", "temperature")}
        found["max_tokens"] = said.get("max_tokens", recipe["rollout"]["max_tokens"])
        if own in others and (path := recipe.get("task", {}).get("path")) is not None:
            found["path"] = path
    return found


@cache
def _read(group: str, name: str) -> dict[str, Any]:
    """What a file says; nothing for a name that mth does not have."""
    file = conf_dir() / group / f"{name}.yaml"
    return (yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}
