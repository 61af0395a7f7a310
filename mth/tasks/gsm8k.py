"""GSM8K (paper, Table 1): grade-school word problems with an integer answer."""

from collections.abc import Iterable
from typing import Any

from mth.config.choices import Prompt
from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.tasks.base import Episode, Task, hold_out
from mth.tasks.boxed import SYSTEM, boxed_score
from mth.tasks.data import read_rows

SOURCE = "openai/gsm8k"
COLUMNS = ("question", "answer")


def gsm8k_episodes(rows: Iterable[dict[str, Any]], prompt: Prompt) -> list[Episode]:
    """Episodes from rows with `question` and `answer`. The gold answer follows `####`; thousands commas are dropped.

    Raises UserError if a row has no gold answer.
    """
    episodes = []
    for index, row in enumerate(rows):
        _, found, gold = (row["answer"] or "").rpartition("####")
        if not found:
            raise UserError(f"gsm8k row {index}: the answer has no '#### ' line")
        episodes.append(Episode(f"row{index}", (row["question"],), (gold.strip().replace(",", ""),), SYSTEM[prompt]))
    return episodes


def build(config: TaskConfig) -> Task:
    """Build the task. Evaluates the test split if the source has one, else held-out rows."""
    path = config.path or SOURCE
    rows, own = read_rows(path, "train", COLUMNS, "main")
    train = gsm8k_episodes(rows, config.prompt)
    if own:
        held = gsm8k_episodes(read_rows(path, "test", COLUMNS, "main")[0], config.prompt)
    else:
        train, held = hold_out(train, config)
    return Task("gsm8k", train, held, boxed_score(config, both=True))
