"""The day some days after a weekday, as few-shot text."""

from mth.config.schema import TaskConfig
from mth.tasks.base import Task
from mth.tasks.fewshot import fewshot_task, split

SOURCE = None
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SHOTS = ((2, "Monday"), (3, "Friday"), (5, "Wednesday"), (4, "Sunday"))
MOST = 30  # days
HELD = 64


def question(count: int, day: str) -> tuple[str, str]:
    """Question and answer."""
    return f"{count} days after {day} is", DAYS[(DAYS.index(day) + count) % len(DAYS)]


def build(config: TaskConfig) -> Task:
    """Build the task: 64 of 199 questions are held out."""
    shots = [question(*of) for of in SHOTS]
    pairs = [question(count, day) for count in range(2, MOST + 1) for day in DAYS if (count, day) not in SHOTS]
    train, held = split(pairs, HELD, config)
    return fewshot_task("weekdays", shots, train, held, config)
