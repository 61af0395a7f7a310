"""What a user types before Hydra reads it: numbers given to groups, tasks that follow from a model, flags in any place."""

import re

from mth.config.paper import TASK_OF

# Groups that take a number: `sparsity=99` becomes `sparsity.percent=99`, because Hydra lets no number choose a group.
NUMBER_GROUPS = {"sparsity": "sparsity.percent", "lr": "lr.value", "seed": "seed.train"}
MIXTURE = f"sparsity=, lr= and seed= take numbers or a word, not a mixture; give {', '.join(f'{key}=' for key in NUMBER_GROUPS.values())}"
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"({_NUMBER}|(range|interval|choice)\(.*\))(\s*,\s*{_NUMBER})*")


def rewrite_numbers(overrides: list[str]) -> list[str]:
    """`sparsity=99,99.9` -> `sparsity.percent=99,99.9`; likewise lr and seed. Words (`sparsity=dense`) still choose a file of the group.

    An experiment with another model gets that model's task: `experiment=fig3_sparsity model=tiny` -> `... task=arithmetic`.
    """
    result = []
    for override in overrides:
        key, sign, value = override.partition("=")
        result.append(f"{NUMBER_GROUPS[key]}={value}" if sign and key in NUMBER_GROUPS and _NUMBERS.fullmatch(value) else override)
    given = dict(override.partition("=")[::2] for override in overrides)
    if "experiment" in given and "task" not in given and given.get("model") in TASK_OF:
        result.append(f"task={TASK_OF[given['model']]}")
    return result


def flags_first(arguments: list[str]) -> list[str]:
    """Arguments with `-m` and `--multirun` before the overrides, because Hydra accepts them only there."""
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    return [*flags[:1], *(argument for argument in arguments if argument not in ("-m", "--multirun"))]
