"""MATH (paper, Table 1): competition problems with a worked solution."""

from collections.abc import Iterable
from typing import Any

from mth.config.choices import Prompt
from mth.config.schema import TaskConfig
from mth.tasks.base import Episode, Task, hold_out
from mth.tasks.boxed import SYSTEM, boxed_score
from mth.tasks.data import read_rows
from mth.tasks.extraction import BOXED, FBOX, last_boxed

SOURCE = "EleutherAI/hendrycks_math"


def math_episodes(rows: Iterable[dict[str, Any]], prompt: Prompt) -> list[Episode]:
    """Episodes from rows with `problem`, and `answer` or a worked `solution`. Drops rows without a gold answer."""
    episodes = []
    for index, row in enumerate(rows):
        gold = row.get("answer") or last_boxed(row.get("solution") or "", (BOXED, FBOX)) or ""
        if gold.strip():
            episodes.append(Episode(f"row{index}", (row["problem"],), (gold.strip(),), SYSTEM[prompt]))
    return episodes


def build(config: TaskConfig) -> Task:
    """Build the task from all subjects of the training split. Holds out a part of the rows for evaluation."""
    rows, _ = read_rows(config.path or SOURCE, "train", ("problem",), "*" if config.path is None else None)
    train, held = hold_out(math_episodes(rows, config.prompt), config)
    return Task("math", train, held, boxed_score(config, both=True))
