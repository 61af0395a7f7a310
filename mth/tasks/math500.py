"""MATH-500 (paper, Table 1): 500 problems of MATH, for evaluation only."""

from mth.config.schema import TaskConfig
from mth.tasks.base import Task
from mth.tasks.boxed import boxed_score
from mth.tasks.data import read_rows
from mth.tasks.math import math_episodes

SOURCE = "HuggingFaceH4/MATH-500"


def build(config: TaskConfig) -> Task:
    """Build the task. It has no training rows."""
    rows, _ = read_rows(config.path or SOURCE, "test", ("problem",))
    return Task("math500", (), math_episodes(rows, config.prompt), boxed_score(config, both=True))
