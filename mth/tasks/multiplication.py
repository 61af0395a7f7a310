"""Multiplication of one digit by two: every product of 2 to 9 with 11 to 60, as few-shot text (for the paper's mathematics, on small models)."""

from mth.config.schema import TaskConfig
from mth.tasks.base import Task
from mth.tasks.fewshot import fewshot_task, split

SOURCE = None
SHOTS = ((3, 12), (7, 15), (4, 21), (6, 13))
HELD = 200  # of 396 products without the shots: as many questions as make a standard error of 0.03


def question(a: int, b: int) -> tuple[str, str]:
    """A product as question and answer."""
    return f"{a} * {b} =", str(a * b)


def build(config: TaskConfig) -> Task:
    """Build the task: 196 products are trained, 200 others are held out."""
    shots = [question(*factors) for factors in SHOTS]
    pairs = [question(a, b) for a in range(2, 10) for b in range(11, 61) if (a, b) not in SHOTS]
    train, held = split(pairs, HELD, config)
    return fewshot_task("multiplication", shots, train, held, config)
