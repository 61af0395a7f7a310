"""Alphabet Sort for base models: two or three names by last name, as few-shot text (paper section 3.1, much shortened)."""

import random
from collections.abc import Sequence

from mth.config.schema import TaskConfig
from mth.foundations.seeds import derive_seed
from mth.tasks.alphabet_sort import embedded_pools
from mth.tasks.base import EVAL_ROWS, Task
from mth.tasks.fewshot import Pair, fewshot_task

SOURCE = None
SHOTS = (
    ("Virginia King", "Harold Stone"),
    ("Paul Myers", "Kathleen Adams", "Steve Ellis"),
    ("Kenneth Long", "Barbara Boyd"),
    ("Thomas Fox", "Nancy Price", "Ruth Hale"),
)
HELD_SHARE = 5  # one last name in five appears in evaluation only


def question(names: Sequence[str]) -> Pair:
    """Names as they are shown, and by last name."""
    return f"Names: {', '.join(names)}. Sorted by last name:", ", ".join(sorted(names, key=lambda name: name.split()[-1]))


def draw(count: int, last_names: Sequence[str], seed: int) -> list[Pair]:
    """`count` distinct questions of two or three names; no first and no last name repeats within one."""
    rng, first, drawn = random.Random(seed), embedded_pools()[0], dict[str, str]()
    while len(drawn) < count:
        size = rng.choice((2, 3))
        names = [f"{a.title()} {b.title()}" for a, b in zip(rng.sample(first, size), rng.sample(last_names, size), strict=True)]
        drawn.setdefault(*question(names))
    return list(drawn.items())


def build(config: TaskConfig) -> Task:
    """Build the task. No last name that is evaluated is ever trained."""
    last = embedded_pools()[1]
    held = draw(EVAL_ROWS, last[::HELD_SHARE], derive_seed("names-held", config.data_seed))
    train = draw(config.train_rows, [name for name in last if name not in set(last[::HELD_SHARE])], derive_seed("names", config.data_seed))
    return fewshot_task("names", [question(names) for names in SHOTS], train, held, config)
