"""Small tasks for pretrained models that follow no instructions yet: a question in one line, worked examples before it, an exact answer.

Multiplication, names, addition and weekdays are such tasks. Their conf/task/ files ask for raw prompts with four examples and for one line as
the reply.
"""

import random
from collections.abc import Iterable, Sequence

from mth.config.schema import TaskConfig
from mth.foundations.errors import require
from mth.foundations.seeds import derive_seed
from mth.tasks.base import Episode, Task

Pair = tuple[str, str]  # question and answer


def exact(episode: Episode, replies: Sequence[str]) -> dict[str, float]:
    """1 if the reply is the answer, apart from spaces around it and from what follows its first line."""
    reply = replies[0].strip().partition("\n")[0].rstrip() if replies else ""
    return {"reward": float(reply == episode.truth[0])}


def episodes(pairs: Iterable[Pair]) -> list[Episode]:
    """One episode for each question. The question is its name too."""
    return [Episode(question, (question,), (answer,)) for question, answer in pairs]


def split(pairs: Sequence[Pair], held: int, config: TaskConfig) -> tuple[list[Pair], list[Pair]]:
    """Divide a finite set of questions: `held` for evaluation, at random by `task.data_seed`, the others for training."""
    order = list(pairs)
    random.Random(derive_seed("fewshot-split", config.data_seed)).shuffle(order)
    return order[held:], order[:held]


def fewshot_task(name: str, shots: Sequence[Pair], train: Sequence[Pair], held: Sequence[Pair], config: TaskConfig) -> Task:
    """A task of these questions. With `task.holdout=false` both parts are the same. Raises UserError if the task is given data to read."""
    require(config.path is None, f"task.path={config.path}: {name} makes its own questions; leave task.path out")
    known = {question for question, _ in shots}
    parts = [[pair for pair in part if pair[0] not in known] for part in ((train, held) if config.holdout else ([*train, *held],) * 2)]
    return Task(name, episodes(parts[0]), episodes(parts[1]), exact, worked=tuple(shots))
