"""What a user types before Hydra reads it: numbers given to groups, tasks that follow from a model, `~`, flags in any place."""

import os
import re
from collections.abc import Iterator, Sequence

from mth.config.options import groups
from mth.config.paper import TASK_OF
from mth.foundations.errors import require

# Groups that take a number: `sparsity=99` becomes `sparsity.percent=99`, because Hydra lets no number choose a group.
NUMBER_GROUPS = {"sparsity": "sparsity.percent", "lr": "lr.value", "seed": "seed.train"}
MIXTURE = f"sparsity=, lr= and seed= take numbers or a word, not a mixture; give {', '.join(f'{key}=' for key in NUMBER_GROUPS.values())}"
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_HOME = re.compile(r"(?<![^,\[])~(?=/)")  # at the start of a value, or of one of several
_TRACKERS = re.compile(r"tracker=\[([^\[\]]*)\]")
_NUMBERS = re.compile(rf"({_NUMBER}|(range|interval|choice)\(.*\))(\s*,\s*{_NUMBER})*")


def rewrite_numbers(overrides: list[str]) -> list[str]:
    """`sparsity=99,99.9` -> `sparsity.percent=99,99.9`; likewise lr and seed. Words (`sparsity=dense`) still choose a file of the group.

    A path that starts with `~/` becomes absolute. Adds the task of a model, see `with_task`. Raises UserError for a list given to a group other than
    tracker, and for several experiments, because each has a sweep of its own.
    """
    result = []
    for override in several_trackers(overrides):
        key, sign, value = override.partition("=")
        require(
            key not in groups() or not value.startswith("["),
            f"{override}: {key}= takes one value; for a grid write {key}={value.strip('[]')} with -m",
        )
        require(key != "experiment" or "," not in value, f"{override}: a grid takes one experiment; give one command for each")
        value = _HOME.sub(os.path.expanduser("~"), value)
        key = NUMBER_GROUPS[key] if key in NUMBER_GROUPS and _NUMBERS.fullmatch(value) else key
        result.append(f"{key}{sign}{value}")
    return with_task(result)


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
    """Arguments with `-m` and `--multirun` before the overrides, because Hydra accepts them only there."""
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    return [*flags[:1], *(argument for argument in arguments if argument not in ("-m", "--multirun"))]
