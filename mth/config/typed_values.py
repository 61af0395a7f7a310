"""Values as people type them: what has one meaning is accepted, the rest is one line that says what to type."""

import difflib
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from mth.config.fields import Key, keys
from mth.config.launchers import LAUNCHERS
from mth.config.options import groups, options
from mth.config.pretrain_schema import PretrainConfig
from mth.config.schema import Config
from mth.config.stored import flat, to_plain
from mth.config.user_code import GROUPS, entry_points
from mth.foundations.errors import UserError, require

_PLAIN_TEXT = re.compile(r"[A-Za-z_./][\w./+-]*", re.ASCII)  # needs no look at how Hydra reads it
_SPAN = re.compile(r"(\d+)(?:\.\.\.?|-|:)(\d+)")
_GLOB = re.compile(r"glob\(([^(),\[\]]*)\)")
# Names that other programs have for what is a key here.
NAMES_ELSEWHERE = {"learning_rate": "lr", "max_steps": "train.steps", "num_generations": "rollout.group_size", "beta": "algorithm.kl_coef"}
_BOOLEANS = {"true", "false", "yes", "no", "on", "off", "y", "n", "0", "1"}


@cache
def known_keys(config_name: str) -> dict[str, Key]:
    """The keys of `mth.train` (config) or `mth.pretrain` (pretrain), by name."""
    return {each.name: each for each in keys(PretrainConfig if config_name == "pretrain" else Config)}


def without_percent(key: str, value: str) -> str:
    """`99%` -> `99`, for a key in percent."""
    return re.sub(r"(?<=\d) ?%", "", value) if key in ("sparsity", "sparsity.percent") else value


def as_meant(key: str, value: str, config_name: str = "config") -> str:
    """The value as Hydra is to read it. Raises UserError, saying what to type, for one that has no meaning for this key or several."""
    kind = known_keys(config_name)[key].type if key in known_keys(config_name) else ""
    if key.endswith(".stop") and kind != "bool":  # a shell leaves \n as two characters
        value = value.replace(r"\n", "\n").replace(r"\t", "\t")
        return value if value == "null" or value[:1] in ("'", '"', "") else in_quotes(value)
    if kind == "str":
        return text(key, value)
    if kind in NUMBERS:
        return _numbers(key, value, *NUMBERS[kind])
    if kind == "list[str]":
        return _list(key, value)
    return value


def _numbers(key: str, value: str, read: Callable[[str], str | None], what: str) -> str:
    """A number, or several of a sweep. What Hydra works out, such as `range(0,3)` and `${train.steps}`, is left to it."""
    require(value != "", f"{key}= needs a value: {what}")
    if value.startswith("["):
        raise UserError(f"{key}={value}: {key}= takes one value; for a grid type {key}={value.strip('[]')} with -m")
    if any(mark in value for mark in "($\"'"):
        return value
    if span := _SPAN.fullmatch(value):
        first, last = int(span[1]), int(span[2])
        raise UserError(f"{key}={value}: for {first} to {last} type '{key}=range({first},{last + 1})' with -m")
    parts = [part.strip() for part in value.split(",")]
    if len(parts) > 1 and any(re.fullmatch(r"0\d+", part) for part in parts[1:]):
        number = value.replace(",", "" if what == WHOLE else ".")
        raise UserError(f"{key}={value}: a comma stands between the values of a grid; type {key}={number}")
    found = [part if part == "null" else read(part) for part in parts]
    require(None not in found, f"{key}={value}: {key}= takes {what}")
    return value if found == parts else ",".join(each for each in found if each is not None)


def _whole(part: str) -> str | None:
    """The digits of a whole number, `1e3` included; None if it is none."""
    if re.fullmatch(r"[-+]?\d[\d_]*", part):
        return part
    try:
        number = float(part)
        return str(int(number)) if number == int(number) else None
    except (ValueError, OverflowError):
        return None


def _real(part: str) -> str | None:
    try:
        float(part)
    except ValueError:
        return None
    return part


def _truth(part: str) -> str | None:
    return part if part.lower() in _BOOLEANS else None


WHOLE = "a whole number"
NUMBERS: dict[str, tuple[Callable[[str], str | None], str]] = {
    "int": (_whole, WHOLE),
    "float": (_real, "a number"),
    "bool": (_truth, "true or false"),
}


def _list(key: str, value: str) -> str:
    """`arithmetic` -> `[arithmetic]`."""
    if not re.fullmatch(r"[\w.-]+(,[\w.-]+)*", value) or value == "null":
        return value
    names = value.split(",")
    separate = ",".join(f"[{name}]" for name in names)
    require(len(names) == 1, f"{key}={value}: for one run with all of them type {key}=[{value}], for a grid {key}={separate} with -m")
    return f"[{value}]"


def text(key: str, value: str) -> str:
    """A text as Hydra reads it: in quotes if it would fail on its characters, or take them for a number or a list of one."""
    if _PLAIN_TEXT.fullmatch(value) and value.lower() not in _BOOLEANS:
        return value
    found = _parsed(f"{key}={value}")
    if found is None:
        require("," not in value, unreadable(key, value))
        return in_quotes(value)
    if found.is_sweep_override() or found.value_type is None:
        return value
    one = found.value()
    if (isinstance(one, list) and len(one) == 1) or (isinstance(one, bool | int | float) and str(one) != value):
        return in_quotes(value)
    return value


def quoted(key: str, value: str) -> str:
    """`key=value` for any text, as the command line takes it."""
    plain = text(key, value) if "," not in value else in_quotes(value)
    return f"{key}={plain}"


def in_quotes(value: str) -> str:
    """A text as Hydra reads it between quotes."""
    mark = '"' if '"' not in value else "'"
    return f"{mark}{value.replace(mark, chr(92) + mark)}{mark}"


def unreadable(key: str, value: str) -> str:
    """What to say of a value that Hydra cannot read."""
    for first, last in ("[]", "{}", "()"):
        if value.startswith(first) and value.count(first) > value.count(last):
            return f"{key}={value} cannot be read: a {last} is missing; type '{key}={value}{last}'"
    return f"{key}={value} cannot be read; put the value in quotes: '{key}={in_quotes(value)}'"


@cache
def _parsed(override: str) -> Any:
    """Hydra's reading of an override; None if it has none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except HydraException:
        return None


def option(group: str, value: str, numbers: bool = False) -> str:
    """The choice of a group, with `glob(*)` resolved. numbers: the group takes numbers too. Raises UserError for an option that does not exist."""
    known = options(group)
    require(value != "", f"{group}= needs a value; {'a number, or ' if numbers else ''}one of {', '.join(known)}")
    if pattern := _GLOB.fullmatch(value):
        found = [name for name in known if fnmatchcase(name, pattern[1].strip("\"'"))]
        require(bool(found), f"{group}={value} fits no option; choose from {', '.join(known)}")
        return ",".join(found)
    for name in value.split(",") if re.fullmatch(r"[^\s()'\"${}\[\]]+", value) else ():
        if name in known or name == "null" or group == "hydra/launcher" or (group in GROUPS and name in entry_points(group)):
            continue
        if group == "experiment":  # Hydra finds them in --config-dir too, and says so where it does not
            continue
        if group == "model":
            raise UserError(f"model={name} is not one that mth names ({', '.join(known)}); for another type model.path={name} lr=RATE")
        raise UserError(f"{group}={name} is unknown; {'give a number, or ' if numbers else ''}choose one of {', '.join(known)}")
    return value


def refuse_glob(key: str, value: str) -> None:
    """Raises UserError for `glob()` where it has nothing to choose from."""
    require(
        not value.startswith("glob("),
        f"{key}={value}: glob() chooses options of a group ({', '.join(groups())}); type the values of {key}=",
    )


def no_such_key(name: str) -> str:
    """One line for a key that does not exist, with the key that was meant.

    That is one with the same last part, one that other programs call so, or one of a similar spelling.
    """
    last, known = name.rpartition(".")[2], [*flat(to_plain(Config())), *groups()]
    if name.startswith("hydra."):
        known = [each.name for launcher in LAUNCHERS.values() for each in keys(launcher, "hydra.launcher.")]
    same = [each for each in known if each.rpartition(".")[2] == last and each != name]
    near = [NAMES_ELSEWHERE[last]] if last in NAMES_ELSEWHERE else sorted(same, key=len) or difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {' or '.join(near[:3])}?" if near else "--help lists all keys"
    return f"{name}: there is no such key; {meant}"
