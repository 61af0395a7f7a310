"""Arithmetic: generated word problems of one or two steps with an integer answer, easy enough for the embedded model."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mth.config.schema import TaskConfig
from mth.tasks.alphabet_sort import embedded_pools
from mth.tasks.base import EVAL_ROWS, Episode, Task
from mth.tasks.boxed import boxed_task

SOURCE = None
INSTRUCTION = "Put your final answer within \\boxed{}."
ITEMS = ("apples", "books", "coins", "cards", "eggs", "pens", "shells", "stamps", "stones", "toys")
EVAL_SHARE = 10  # one question in ten is for evaluation


@dataclass(frozen=True)
class Problem:
    """A question and its solution: the operations (sign, operand) apply to `start` in turn."""

    question: str
    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> int:
        value = self.start
        for operation in self.operations:
            value = apply(value, *operation)
        return value


def apply(value: int, sign: str, operand: int) -> int:
    """The result of `value sign operand`; sign is +, - or *."""
    return {"+": value + operand, "-": value - operand, "*": value * operand}[sign]


def draw_problem(rng: random.Random) -> Problem:
    """Draw one problem of five equally likely kinds: sum, difference, product, sum and difference, comparison."""
    who, other = rng.sample(embedded_pools()[0], 2)
    item = rng.choice(ITEMS)
    kind = rng.randrange(5)
    if kind == 0:
        a, b = rng.randint(2, 60), rng.randint(2, 39)
        return Problem(f"{who} has {a} {item} and gets {b} more. How many {item} now?", a, (("+", b),))
    if kind == 1:
        a = rng.randint(10, 99)
        b = rng.randint(2, a - 1)
        return Problem(f"{who} has {a} {item} and gives away {b}. How many {item} are left?", a, (("-", b),))
    if kind == 2:
        a, b = rng.randint(2, 12), rng.randint(2, 9)
        return Problem(f"{who} buys {a} bags with {b} {item} each. How many {item} is that?", a, (("*", b),))
    a, b = rng.randint(5, 40), rng.randint(2, 30)
    if kind == 3:
        c = rng.randint(1, a + b - 1)
        question = f"{who} has {a} {item}, gets {b} more and then loses {c}. How many {item} are left?"
        return Problem(question, a, (("+", b), ("-", c)))
    question = f"{who} has {a} {item}. {other} has {b} more than {who}. How many {item} do they have in all?"
    return Problem(question, a, (("+", b), ("+", a)))


def is_eval(question: str) -> bool:
    """Returns True if a question is for evaluation. A hash of its text decides, so no question is in both splits."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % EVAL_SHARE == 0


def problems(seed: int, evaluation: bool | None = None) -> Iterator[Problem]:
    """An endless stream of distinct problems. evaluation: True for the evaluation split, False for training, None for both."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        problem = draw_problem(rng)
        if problem.question not in seen and evaluation in (None, is_eval(problem.question)):
            seen.add(problem.question)
            yield problem


def solution_text(problem: Problem, slip: Callable[[int], int] = int) -> str:
    """A worked solution in the form that the embedded model is pretrained on. slip: may replace the result of an equation."""
    value, lines = problem.start, []
    for sign, operand in problem.operations:
        result = slip(apply(value, sign, operand))
        lines.append(f"{value} {sign} {operand} = {result}")
        value = result
    return "\n".join([*lines, f"\\boxed{{{value}}}"])


def draw_problems(count: int, seed: int, evaluation: bool) -> list[Problem]:
    """`count` distinct problems of one split."""
    return list(islice(problems(seed, evaluation), count))


def episodes(drawn: Sequence[Problem]) -> list[Episode]:
    """One episode for each problem."""
    return [Episode(f"problem{i}", (f"{p.question}\n{INSTRUCTION}",), (str(p.answer),)) for i, p in enumerate(drawn)]


def build(config: TaskConfig) -> Task:
    """Build the task from generated problems."""
    drawn = draw_problems(config.train_rows, config.data_seed, evaluation=False)
    train = episodes(drawn)
    held = episodes(draw_problems(EVAL_ROWS, config.data_seed, evaluation=True)) if config.holdout else train
    return boxed_task(
        "arithmetic", train, held, config, {f"problem{i}": solution_text(drawn[i]) for i in range(min(config.shots, len(drawn)))}
    )
