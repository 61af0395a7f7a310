"""What a configuration brings along from outside the package: tasks, masks, losses and graders of the user's own files and packages."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from mth.config.options import options, values
from mth.foundations.errors import require
from mth.foundations.user_code import frozen_files, parse, pinned

GROUPS = {"task": "mth.tasks", "mask": "mth.masks"}  # group -> entry points that offer more of its options
KEYS = ("task.source", "task.grader_source", "mask.source", "algorithm.source")  # keys whose value names code; eval.sources holds several
OF_TASKS = "eval.sources"
NAMED_BY = {"own": "source", "reasoning_gym": "dataset", "verifiers": "environment"}  # file of conf/task/ -> key that says which task it is
OPEN = ("task.options.", "mask.options.", f"{OF_TASKS}.")  # keys below are the user's to name


def code_of(config: Any) -> dict[str, str]:
    """The code that a configuration names, by key. config: a Config."""
    found = {f"{OF_TASKS}.{name}": text for name, text in config.eval.sources.items()}
    for key in KEYS:
        section, _, name = key.partition(".")
        found[key] = getattr(getattr(config, section), name)
    return {key: text for key, text in found.items() if text is not None}


def files_of_code(config: Any) -> dict[str, Path]:
    """The files that a frozen copy needs to run the code that a configuration names, by name below its folder."""
    return {name: path for key, text in code_of(config).items() for name, path in frozen_files(text, key).items()}


def own_names(config: Any) -> set[str]:
    """Names of tasks and mask families that the configuration itself declares. Raises UserError if mth has one of the name."""
    task, mask = config.task, config.mask
    tasks = {task.name} if any(getattr(task, key) is not None for key in NAMED_BY.values()) else set()
    for name in (*tasks, *config.eval.sources):
        require(name not in options("task"), f"task.name={name} is a task of mth; give task.name= another name")
    families = {mask.family} if mask.source is not None else set()
    for name in families:
        require(name not in values("mask", "family"), f"mask.family={name} is a family of mth; give mask.family= another name")
    return tasks | families | set(config.eval.sources)


def settle(config: Any) -> None:
    """Pin the code that a configuration names, and give tasks and families of the user their names. config: a Config, changed in place.

    Raises UserError if code is missing, or if a key is missing that says which task is meant.
    """
    for key in KEYS:
        section, _, name = key.partition(".")
        text = getattr(getattr(config, section), name)
        if text is not None:
            setattr(getattr(config, section), name, pinned(text, key))
    _name_task(config)
    if config.mask.source is not None and config.mask.family == "own":
        config.mask.family = parse(config.mask.source, "mask.source").name.lower()
    for name in config.eval.tasks or []:
        offered = None if name in options("task") or name in (config.task.name, *config.eval.sources) else entry_points("task").get(name)
        if offered is not None:
            config.eval.sources[name] = offered
    config.eval.sources = {name: pinned(text, f"{OF_TASKS}.{name}") for name, text in config.eval.sources.items() if text is not None}


def _name_task(config: Any) -> None:
    """A file's task is called as the file, one of a library as the library and what it offers."""
    task, kind = config.task, config.task.name
    if kind not in NAMED_BY:
        return
    which = getattr(task, NAMED_BY[kind])
    example = {"own": "path/to/file.py:build", "reasoning_gym": "chain_sum", "verifiers": "<id>"}[kind]
    require(which is not None, f"task={kind} needs task.{NAMED_BY[kind]}={example}")
    place = parse(which, "task.source").place if kind == "own" else which
    stem = os.path.basename(place).removesuffix(".py").rpartition(".")[2] if kind == "own" else f"{kind}_{which}"
    task.name = re.sub(r"\W", "_", stem)
    config.eval.tasks = [task.name if name == kind else name for name in config.eval.tasks] if config.eval.tasks else config.eval.tasks


def portable(value: Any) -> Any:
    """What an identity holds of code: the same wherever the code lies. value: of one of KEYS, or all of `eval.sources`."""
    if isinstance(value, dict):
        return {name: portable(text) for name, text in value.items()}
    return value if value is None else parse(value, "source").portable


@cache
def entry_points(group: str) -> dict[str, str]:
    """What installed packages offer for a group: name -> code. Reads the records of all packages. Raises UserError if two have one name."""
    from importlib import metadata

    found: dict[str, str] = {}
    for point in metadata.entry_points(group=GROUPS[group]):
        package = point.dist.name if point.dist else "?"
        known = "mth" if point.name in options(group) else "another package" if found.get(point.name, point.value) != point.value else None
        require(
            known is None, f"entry point {point.name} of {GROUPS[group]} in the package {package}: {known} has one of this name; rename it"
        )
        found[point.name] = point.value
    return found


def with_own(overrides: list[str], choose: bool = True) -> list[str]:
    """Overrides in which options need no `+`, and, with `choose`, `task.source=` and `mask.source=` choose no task or family of mth."""
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    own = [f"{group}=own" for group in GROUPS if choose and f"{group}.source" in given and group not in given]
    return [*(f"++{override}" if override.startswith(OPEN) else override for override in overrides), *own]


def task_overrides(task: Any) -> list[str]:
    """Overrides that choose the task of a configuration. task: its section."""
    kind = next((kind for kind, key in NAMED_BY.items() if getattr(task, key) is not None), None)
    if kind is None:
        return [f"task={task.name}"]
    return [f"task={kind}", f"task.{NAMED_BY[kind]}='{getattr(task, NAMED_BY[kind])}'", f"task.name={task.name}"]


def offered(overrides: list[str]) -> dict[tuple[str, str], dict[str, str]]:
    """Options that the overrides choose and that mth does not have: (group, name) -> keys, as a file of conf/<group>/ would give them."""
    found = {}
    for override in overrides:
        group, _, value = override.partition("=")
        for name in value.split(",") if group in GROUPS else ():
            if name not in options(group) and name in entry_points(group):
                found[group, name] = {"name" if group == "task" else "family": name, "source": entry_points(group)[name]}
    return found
