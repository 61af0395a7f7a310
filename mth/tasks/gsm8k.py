"""GSM8K (paper, Table 1): grade-school word problems with an integer answer."""

import re
from collections.abc import Iterable
from typing import Any

from mth.config.choices import Prompt
from mth.config.schema import TaskConfig
from mth.foundations.errors import require
from mth.tasks.base import Episode, Task, hold_out
from mth.tasks.boxed import SYSTEM, boxed_task
from mth.tasks.data import read_rows
from mth.tasks.files import text, text_of

SOURCE = "openai/gsm8k"
COLUMNS = ("question", "answer")


def gsm8k_episodes(rows: Iterable[dict[str, Any]], prompt: Prompt, path: str = SOURCE) -> list[Episode]:
    """Episodes from rows with `question` and `answer`. The gold answer follows `####`; thousands commas are dropped.

    Raises UserError if a row has no question or no gold answer. path: of the rows, for that message.
    """
    episodes = []
    for index, row in enumerate(rows):
        question, (_, found, gold) = text_of(row, "question", index, path), text_of(row, "answer", index, path).rpartition("####")
        require(bool(question), f"task.path={path}: row {index} has no question; remove the row")
        require(bool(found), f"task.path={path}: row {index}: the answer has no '#### ' line; remove the row")
        require(bool(gold.strip()), f"task.path={path}: row {index} has no gold answer behind '####'; remove the row")
        episodes.append(Episode(f"row{index}", (question,), (gold.strip().replace(",", ""),), SYSTEM[prompt]))
    return episodes


def solutions(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The worked answer of each row by the uid of its episode, with the gold answer in a box and without the marks of a calculator."""
    found = {}
    for index, row in enumerate(rows):
        steps, _, gold = re.sub(r"<<.*?>>", "", text(row["answer"])).rpartition("####")
        found[f"row{index}"] = f"{steps.strip()}\n\\boxed{{{gold.strip().replace(',', '')}}}"
    return found


def build(config: TaskConfig) -> Task:
    """Build the task. Evaluates the test split if the source has one, else held-out rows."""
    path = config.path or SOURCE
    rows, own = read_rows(path, "train", COLUMNS, "main")
    train = gsm8k_episodes(rows, config.prompt, path)
    if own:
        held = gsm8k_episodes(read_rows(path, "test", COLUMNS, "main")[0], config.prompt, path)
    else:
        train, held = hold_out(train, config)
    return boxed_task("gsm8k", train, held, config, solutions(rows))
