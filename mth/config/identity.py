"""Which run is this? A hash of everything that influences the result, and where two configurations differ."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from mth.config.fields import keys
from mth.config.schema import Config
from mth.config.stored import to_plain
from mth.config.user_code import KEYS, OF_TASKS, portable

PLACES = frozenset(key.name for key in keys(Config) if key.place)
LATER = {key.name: key.default for key in keys(Config) if key.later}
SETTLED = {"model.device": "auto"}  # places that published identities hold: they enter with this value
FIRST_TASKS = (
    "alphabet_sort",
    "gsm8k",
    "math",
    "math500",
    "arithmetic",
)  # their null entries in eval.paths are part of published identities


def identity_keys(config: Any, prefix: str = "") -> dict[str, Any]:
    """The part of a configuration that influences the result, as plain data. config: a Config, or a section of one as plain data."""
    data = config if isinstance(config, dict) else to_plain(config)
    if prefix == "eval.paths.":
        return {name: data.get(name) for name in FIRST_TASKS} | {name: path for name, path in data.items() if path is not None}
    result = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if value is None and prefix.startswith("eval.per_task."):  # as the shared value
            continue
        value = portable(value) if name in (*KEYS, OF_TASKS) else SETTLED.get(name, value)
        if name in PLACES or (name in LATER and value == LATER[name]):
            continue
        kept = identity_keys(value, f"{name}.") if isinstance(value, dict) and name not in LATER else value
        if kept != {}:
            result[key] = kept
    return result


def identity(config: Config) -> str:
    """Names a run: configurations with the same identity compute the same result."""
    return hashlib.sha256(json.dumps(identity_keys(config), sort_keys=True).encode()).hexdigest()[:16]


def prefix_identity(config: Config) -> str:
    """Identity without `train.steps`, on which no step depends: of two runs with the same one, the shorter is the beginning of the longer."""
    return identity(replace(config, train=replace(config.train, steps=1)))


def differing_keys(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Dotted keys that influence the result and differ between two stored configurations, as `key (left, here right)`."""
    return _differences(identity_keys(left), identity_keys(right), "")


def _differences(left: dict[str, Any], right: dict[str, Any], prefix: str) -> list[str]:
    found = []
    for key in sorted(left.keys() | right.keys()):
        a, b = left.get(key), right.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({a}, here {b})")
    return found
