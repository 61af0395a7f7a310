"""What a user types before Hydra reads it: numbers given to groups, tasks that follow from a model, `~`, flags in any place."""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence

from mth.config.options import groups
from mth.config.paper import TASK_OF
from mth.config.typed_values import as_meant, known_keys, option, refuse_glob, without_percent
from mth.config.user_code import with_own
from mth.foundations.errors import UserError, require

# Groups that take a number: `sparsity=99` becomes `sparsity.percent=99`, because Hydra lets no number choose a group.
NUMBER_GROUPS = {"sparsity": "sparsity.percent", "lr": "lr.value", "seed": "seed.train"}
MIXTURE = f"sparsity=, lr= and seed= take numbers or a word, not a mixture; give {', '.join(f'{key}=' for key in NUMBER_GROUPS.values())}"
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_HOME = re.compile(r"(?<![^,\[{:'\"])~(?=/|$)")  # at the start of a value, or of one of several
_TRACKERS = re.compile(r"tracker=\[([^\[\]]*)\]")
_NUMBERS = re.compile(rf"({_NUMBER}|(range|interval|choice|sort|shuffle)\(.*\))(\s*,\s*{_NUMBER})*")
# Hydra's own flags: alone, or with a value behind them.
FLAGS = ("-m", "--multirun", "-r", "--run", "--resolve", "--version", "--hydra-help", "--experimental-rerun")
FLAGS_WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-i", "--info", "-cn", "--config-name", "-cp", "--config-path", "-cd", "--config-dir")


def as_overrides(arguments: Sequence[str], config_name: str = "config") -> list[str]:
    """Arguments with `--sparsity 99` and `--sparsity=99` as `sparsity=99`, `--force` as `force=true`. Hydra's own flags stay.

    Raises UserError, saying what to type, for an argument that is neither a flag of Hydra nor KEY=VALUE.
    """
    known = {*known_keys(config_name), *(groups() if config_name == "config" else ())}
    result, rest = [], deque(arguments)
    while rest:
        argument = rest.popleft()
        name, sign, value = argument.lstrip("-").partition("=")
        name = name if name in known else name.replace("-", "_")
        behind = rest[0] if rest and not _begins_anew(rest[0], known) else None
        if argument.partition("=")[0] in FLAGS_WITH_VALUE:
            result += [argument, *([rest.popleft()] if not sign and rest else [])]
        elif argument in FLAGS or (not argument.startswith("-") and (sign or argument.startswith("~"))):
            result.append(argument)
        elif not argument.startswith("-"):
            key, _, after = argument.partition(":")
            example = after or behind or ("true" if _is_truth(key, config_name) else "VALUE")
            raise UserError(f"{argument}: write KEY=VALUE" + (f", as in {key}={example}" if key in known else ""))
        elif name not in known:
            raise UserError(f"{argument}: there is no such option; keys are written KEY=VALUE, --help lists them")
        elif sign:
            result.append(f"{name}={value}")
        elif behind is not None:
            result.append(f"{name}={rest.popleft()}")
        else:
            require(_is_truth(name, config_name), f"{argument}: write {name}=VALUE")
            result.append(f"{name}=true")
    return result


def _begins_anew(argument: str, known: set[str]) -> bool:
    """Whether an argument is a flag or an override, and so no value of the flag before it."""
    key, sign, _ = argument.lstrip("+").partition("=")
    return argument.startswith(("-", "~")) or (bool(sign) and (key in known or key.startswith("hydra")))


def _is_truth(key: str, config_name: str) -> bool:
    return key in known_keys(config_name) and known_keys(config_name)[key].type == "bool"


def rewrite_numbers(overrides: list[str], config_name: str = "config", own: bool = True) -> list[str]:
    """`sparsity=99,99.9` -> `sparsity.percent=99,99.9`; likewise lr and seed. Words (`sparsity=dense`) still choose a file of the group.

    A path that starts with `~/` becomes absolute. Values are read as they are meant, see `typed_values`. Adds the task of a model, see
    `with_task`. Raises UserError for a list given to a group other than tracker, and for several experiments, because each has a
    sweep of its own. config_name:
    config for `mth.train`, pretrain for `mth.pretrain`, which has no groups. own: see `with_own`; without it a group may have any name.
    """
    result = []
    for override in several_trackers(overrides):
        key, sign, value = override.partition("=")
        require(
            override.lstrip("~") not in groups() or not override.startswith("~"), f"{override}: every group has a choice; give another one"
        )
        if not sign or override.startswith(("-", "~")):
            result.append(override)
            continue
        value = without_percent(key, _HOME.sub(os.path.expanduser("~"), value))
        if config_name == "config" and key in groups():
            value = _choice(key, value, own)
            key = NUMBER_GROUPS[key] if key in NUMBER_GROUPS and _NUMBERS.fullmatch(value) else key
        else:
            require(key not in groups(), f"{key}=: Hydra takes it for a group of mth.train; set it in conf/{config_name}.yaml")
            refuse_glob(key, value)
        result.append(f"{key}={as_meant(key, value, config_name)}")
    return with_task(with_own(result, choose=own)) if config_name == "config" else result


def _choice(group: str, value: str, check: bool) -> str:
    """The value of a group. Raises UserError if it has none of the meanings that a group's value can have."""
    if value.startswith("["):
        raise UserError(f"{group}={value}: {group}= takes one value; for a grid write {group}={value.strip('[]')} with -m")
    require(group != "experiment" or "," not in value, f"experiment={value}: a grid takes one experiment; give one command for each")
    words = group not in NUMBER_GROUPS or value.startswith("glob(") or re.fullmatch(r"[A-Za-z0-9_.]+", value)
    return value if not (words and check) or _NUMBERS.fullmatch(value) else option(group, value, numbers=group in NUMBER_GROUPS)


def several_trackers(overrides: Sequence[str]) -> Iterator[str]:
    """`tracker=[mlflow,wandb]` -> `tracker=mlflow tracker.also=[wandb]`."""
    for override in overrides:
        names = _TRACKERS.fullmatch(override)
        if names is None:
            yield override
        else:
            first, *others = (name.strip() for name in names[1].split(","))
            yield from (f"tracker={first or 'none'}", f"tracker.also=[{','.join(others)}]")


def with_task(overrides: Sequence[str]) -> list[str]:
    """An experiment with another model gets that model's task: `experiment=fig3_sparsity model=tiny` -> `... task=arithmetic`."""
    given = dict(override.partition("=")[::2] for override in overrides)
    model = given.get("model")
    return [*overrides, f"task={TASK_OF[model]}"] if "experiment" in given and "task" not in given and model in TASK_OF else list(overrides)


def flags_first(arguments: list[str]) -> list[str]:
    """Arguments with flags, such as `-m` and `--cfg job`, before the overrides, because Hydra accepts them only there."""

    def is_override(argument: str) -> bool:
        return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))

    return sorted(arguments, key=is_override)
