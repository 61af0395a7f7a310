"""Addition of two numbers: every sum of 2 to 30 and 2 to 30, as few-shot text."""

from mth.config.schema import TaskConfig
from mth.tasks.base import Task
from mth.tasks.fewshot import fewshot_task, split

SOURCE = None
SHOTS = ((3, 12), (17, 5), (24, 11), (6, 23))
HELD = 256


def question(a: int, b: int) -> tuple[str, str]:
    """A sum as question and answer."""
    return f"{a} + {b} =", str(a + b)


def build(config: TaskConfig) -> Task:
    """Build the task: 256 of 837 sums are held out."""
    shots = [question(*terms) for terms in SHOTS]
    pairs = [question(a, b) for a in range(2, 31) for b in range(2, 31) if (a, b) not in SHOTS]
    train, held = split(pairs, HELD, config)
    return fewshot_task("addition", shots, train, held, config)
