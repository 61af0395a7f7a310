"""Scores of code that is not mth's: a number, or numbers by name with the reward among them. Refuses what cannot be trained on."""

import math
from collections.abc import Mapping
from typing import Any

from mth.foundations.errors import require
from mth.tasks.base import Episode, Task


def checked(found: Any, episode: Episode, where: str) -> dict[str, float]:
    """The scores as floats; a single number is the reward.

    where: key and code, for the message. Raises UserError if a score is no finite number, or if the reward is not from 0 to 1.
    """
    scores = found if isinstance(found, Mapping) else {"reward": found}
    require("reward" in scores, f"{where}: the score of {episode.uid} has no reward; return a number from 0 to 1, or {{'reward': number}}")
    numbers = {}
    for name, value in scores.items():
        number = _number(value)
        require(
            number is not None and isinstance(name, str),
            f"{where}: the score {name}={value!r} of {episode.uid} is no finite number; return one",
        )
        numbers[str(name)] = number or 0.0
    reward = numbers["reward"]
    require(0 <= reward <= 1, f"{where}: the reward of {episode.uid} is {reward:g}; scale rewards to the range from 0 to 1")
    return numbers


def _number(value: Any) -> float | None:
    """A finite number as a float; None for anything else, for instance a text."""
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def probe(task: Task) -> None:
    """Score an empty reply and the truth on the first episode of each part, and ask for the next turn.

    Raises UserError as the task's functions do, and if there is no episode.
    """
    require(bool(task.train or task.eval), f"task {task.name} has no episodes; give it some")
    first = [part[0] for part in (task.train, task.eval) if part]
    for episode in first:
        task.next_turn(episode, [""] * len(episode.turns))
    task.scores([(episode, replies) for episode in first for replies in ([""] * len(episode.turns), list(episode.truth))])
