"""The interface of a task: episodes, which are the user's turns and the truth, and a function that scores the model's replies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.foundations.seeds import derive_seed, permutation

EVAL_ROWS = 1024  # most rows that are held out if training and evaluation rows come from one source
Score = Callable[["Episode", Sequence[str]], dict[str, float]]


@dataclass(frozen=True)
class Episode:
    """One prompt with one or several turns. The user's turns do not depend on the model's replies.

    turns: the user's messages, in order. truth: the content of a perfect reply, as the task's `score` expects it. system: system prompt.
    """

    uid: str
    turns: tuple[str, ...]
    truth: tuple[str, ...]
    system: str = ""


@dataclass(frozen=True)
class Task:
    """A named set of training and evaluation episodes.

    score(episode, replies) returns {"reward": r} with r in [0, 1], and perhaps further keys, whose means are logged. A missing reply, after
    a conversation that ended early, counts as an empty one.
    """

    name: str
    train: Sequence[Episode]
    eval: Sequence[Episode]
    score: Score


def hold_out(episodes: Sequence[Episode], config: TaskConfig, count: int | None = None) -> tuple[list[Episode], list[Episode]]:
    """Split episodes into training and evaluation. Holds out `count` at random (default: a fifth, at most EVAL_ROWS).

    With `task.holdout=false` both parts have all episodes. Raises UserError if there are fewer than two to split.
    """
    if not config.holdout:
        return list(episodes), list(episodes)
    if len(episodes) < 2:
        raise UserError(f"task.path={config.path}: {len(episodes)} usable rows cannot be split; give more or set task.holdout=false")
    order = permutation(derive_seed("holdout", config.data_seed), len(episodes))
    held = set(order[: count or max(1, min(EVAL_ROWS, len(episodes) // 5))].tolist())
    return [e for i, e in enumerate(episodes) if i not in held], [e for i, e in enumerate(episodes) if i in held]
