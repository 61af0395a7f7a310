"""MATH (paper, Table 1): competition problems with a worked solution."""

import sys
from collections.abc import Sequence
from typing import Any

from mth.config.choices import Prompt
from mth.config.schema import TaskConfig
from mth.foundations.errors import require
from mth.tasks.base import Episode, Task, hold_out
from mth.tasks.boxed import SYSTEM, boxed_task
from mth.tasks.data import read_rows
from mth.tasks.extraction import BOXED, FBOX, last_boxed
from mth.tasks.files import text, text_of

SOURCE = "EleutherAI/hendrycks_math"


def math_episodes(rows: Sequence[dict[str, Any]], prompt: Prompt, path: str = SOURCE) -> list[Episode]:
    r"""Episodes from rows with `problem`, and `answer` or a worked `solution` whose last `\boxed` or `\fbox` is the gold answer.

    Drops rows without a gold answer and says how many. Raises UserError if a row has no problem, or if no row has a gold answer.
    path: of the rows, for these messages.
    """
    episodes = []
    for index, row in enumerate(rows):
        problem = text_of(row, "problem", index, path)
        require(bool(problem), f"task.path={path}: row {index} has no problem; remove the row")
        gold = text_of(row, "answer", index, path) or last_boxed(text_of(row, "solution", index, path), (BOXED, FBOX)) or ""
        if gold.strip():
            episodes.append(Episode(f"row{index}", (problem,), (gold.strip(),), SYSTEM[prompt]))
    require(bool(episodes), f"task.path={path}: no row has a gold answer, in answer or boxed in solution")
    if len(episodes) < len(rows):
        print(f"warning: {path}: {len(rows) - len(episodes)} of {len(rows)} rows have no gold answer and are dropped", file=sys.stderr)
    return episodes


def build(config: TaskConfig) -> Task:
    """Build the task from all subjects of the training split. Holds out a part of the rows for evaluation."""
    path = config.path or SOURCE
    rows, _ = read_rows(path, "train", ("problem",), "*" if config.path is None else None)
    train, held = hold_out(math_episodes(rows, config.prompt, path), config)
    solutions = {f"row{index}": worked for index, row in enumerate(rows) if (worked := text(row.get("solution")))}
    return boxed_task("math", train, held, config, solutions)
