"""MATH-500 (paper, Table 1): 500 problems of MATH, for evaluation only."""

from mth.config.schema import TaskConfig
from mth.tasks.base import Task
from mth.tasks.boxed import boxed_task
from mth.tasks.data import read_rows
from mth.tasks.math import math_episodes

SOURCE = "HuggingFaceH4/MATH-500"


def build(config: TaskConfig) -> Task:
    """Build the task. It has no training rows."""
    path = config.path or SOURCE
    rows, _ = read_rows(path, "test", ("problem",))
    return boxed_task("math500", (), math_episodes(rows, config.prompt, path), config)
