"""Finds runs by their settings: `sparsity=99,99.9 task=gsm8k` as one would type them to train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mth.analysis.glance import Glance, defaults, glance
from mth.config.options import groups, options
from mth.config.overrides import rewrite_numbers
from mth.config.stored import flat
from mth.config.typed_values import no_such_key
from mth.foundations.errors import UserError, require
from mth.foundations.paths import conf_dir, one_spelling
from mth.runs.search import run_folders

OPEN_SECTIONS = ("mask.options.", "eval.per_task.", "eval.paths.")  # whose keys no default has


@dataclass(frozen=True)
class Condition:
    """What a run's settings must be. alternatives: settings by dotted key, of which one set must be there."""

    alternatives: tuple[dict[str, Any], ...]

    def admits(self, settings: dict[str, Any]) -> bool:
        """Whether a run's settings fit."""
        return any(all(equal(settings.get(key), value) for key, value in each.items()) for each in self.alternatives)


def equal(found: Any, wanted: Any) -> bool:
    """Whether a setting is what was asked for: numbers by value, a list also by one of its members, a path however it is spelled."""
    if isinstance(found, list):
        return found == wanted or any(equal(each, wanted) for each in found)
    if isinstance(found, int | float) and isinstance(wanted, int | float) and not isinstance(found, bool):
        return not isinstance(wanted, bool) and float(found) == float(wanted)
    return found == wanted or (isinstance(wanted, str) and found is not None and str(found) in (wanted, one_spelling(wanted)))


def conditions(texts: Sequence[str]) -> list[Condition]:
    """The conditions that were typed. Raises UserError for a key or an option that does not exist."""
    found = []
    for text in texts:
        key, sign, values = rewrite_numbers([text], own=False)[0].partition("=")
        require(bool(sign and key and values), f"{text}: give KEY=VALUE, such as sparsity=99")
        parts = [values] if values.startswith("[") else values.split(",")
        if key in groups():
            found.append(Condition(tuple(_of_option(key, part) for part in parts)))
            continue
        require(key in defaults() or key.startswith(OPEN_SECTIONS), no_such_key(key))
        found.append(Condition(tuple({key: _value(part)} for part in parts)))
    return found


def _value(text: str) -> Any:
    """A value as it was typed: a number, a list, a word."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text} cannot be read as a value") from error


def _of_option(group: str, option: str) -> dict[str, Any]:
    """The settings by which runs with this option of a group are known: its name, or all that its file sets."""
    require(group not in ("experiment", "hydra/launcher"), f"{group}= is no setting of a run; give settings, such as sparsity=99")
    if option not in options(group):
        require(f"{group}.name" in defaults(), f"{group}={option} is unknown; choose one of {', '.join(options(group))}")
        return {f"{group}.name": option}
    text = (conf_dir() / group / f"{option}.yaml").read_text()
    known = {key: value for key, value in flat(yaml.safe_load(text) or {}).items() if key != "defaults"}
    if "name" in known:
        return {f"{group}.name": known["name"]}
    known = {key: value for key, value in known.items() if value is not None}
    require(bool(known), f"{group}={option} does not name a value; give {group}=NUMBER")
    return known if "@package _global_" in text else {f"{group}.{key}": value for key, value in known.items()}


def find(folder: Path, wanted: Sequence[Condition], states: Sequence[str] = ()) -> tuple[list[Glance], int]:
    """The runs below a folder that fit, newest first, and how many there are in all. states: of which one must be a run's; any if empty.

    Raises UserError if the folder does not exist or holds no run.
    """
    require(folder.is_dir(), f"{folder} does not exist; give a folder with runs, such as multirun")
    every = [glance(path, check=False) for path in run_folders(folder)]
    require(bool(every), f"{folder} has no runs of mth")
    fits = [run for run in every if all(each.admits(run.settings) for each in wanted) and (not states or run.status in states)]
    return sorted(fits, key=lambda run: -run.changed), len(every)
