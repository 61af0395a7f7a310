"""Alphabet Sort (paper section 3.1): keep a growing list of names sorted over several turns.

Follows the public environment `alphabet-sort` that the paper used. For each row, one seeded generator draws the number of turns, the names
per turn, the sort key, the order in which names are shown, and the number of placeholder lines in the format block.
"""

import difflib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError, require
from mth.foundations.paths import ASSETS
from mth.tasks.base import EVAL_ROWS, Episode, Task, hold_out
from mth.tasks.data import read_rows

SOURCE = None
FIRST_TAG = "alphabetical_sorted"
LATER_TAG = "combined_alphabetical_sorted"
NEW_MARK = " // new name!"
POWER = 4  # exponent of the similarity in the reward


@dataclass(frozen=True)
class Shape:
    """Range of the number of turns and of the new names per turn; bounds are inclusive."""

    min_turns: int = 2
    max_turns: int = 2
    min_names: int = 1
    max_names: int = 5


@dataclass(frozen=True)
class Draw:
    """One episode before it is rendered as text. names[t]: new names of turn t, in data order. by_first: sort by first name."""

    names: tuple[tuple[str, ...], ...]
    by_first: bool


def split_name(name: str) -> tuple[str, str]:
    """'AdaLovelace' -> ('Ada', 'Lovelace'). The last name starts at the second upper-case letter, and is empty if there is none."""
    for position in range(1, len(name)):
        if name[position].isupper():
            return name[:position], name[position:]
    return name, ""


def sort_names(names: Iterable[str], by_first: bool) -> list[str]:
    """Sort by first or by last name; stable and case-sensitive."""
    return sorted(names, key=lambda name: split_name(name)[0 if by_first else 1])


def distinct_names(raw: Iterable[str]) -> list[str]:
    """Turn 'First Last' into 'FirstLast'. Drops duplicates and keeps the order."""
    return list(dict.fromkeys(name.replace(" ", "") for name in raw))


def truths(draw: Draw) -> list[list[str]]:
    """Lines of the perfect reply of each turn: all names so far, sorted. From the second turn on, new names are marked."""
    seen: list[str] = []
    result = []
    for turn, names in enumerate(draw.names):
        seen.extend(names)
        fresh = set(names) if turn else set()
        result.append([name + NEW_MARK if name in fresh else name for name in sort_names(seen, draw.by_first)])
    return result


def reply_text(lines: Sequence[str], turn: int) -> str:
    """A reply in the required format."""
    tag = LATER_TAG if turn else FIRST_TAG
    return "\n".join([f"<{tag}>", *lines, f"</{tag}>"])


def draw_episode(names: Sequence[str], shape: Shape, rng: random.Random) -> Draw | None:
    """Draw turns, names per turn and sort key, in this order. Returns None before the key is drawn if the row has too few names."""
    turns = rng.randint(shape.min_turns, shape.max_turns)
    counts = [rng.randint(shape.min_names, shape.max_names) for _ in range(turns)]
    if len(names) < sum(counts):
        return None
    by_first = rng.choice([True, False])
    starts = [sum(counts[:turn]) for turn in range(turns)]
    return Draw(tuple(tuple(names[start : start + count]) for start, count in zip(starts, counts, strict=True)), by_first)


def user_turns(draw: Draw, shape: Shape, rng: random.Random) -> tuple[str, ...]:
    """The user's messages: shuffled names, and a format block with a random number of placeholder lines."""
    key = "FIRST" if draw.by_first else "LAST"
    messages, total = [], 0
    for turn, names in enumerate(draw.names):
        total += len(names)
        shown = list(names)
        rng.shuffle(shown)
        if turn == 0:
            lines = [f"Name{i + 1}" for i in range(rng.randint(shape.min_names, shape.max_names))]
            head = f"Sort these names in alphabetical order by {key} name: {', '.join(shown)}\n\n"
            messages.append(f"{head}Use exactly this format:\n{reply_text(lines, turn)}")
            continue
        # The environment draws a template for every later turn, shown or not.
        count = rng.randint(shape.min_names, total)
        first_marked = rng.randint(0, count - 1)
        head = (
            f"Now sort ALL of these names alphabetically by {key} name: {', '.join(shown)}\n\n"
            "These are in addition to the prior list. Mark any NEW names (that weren't in the prior list) with `// new name!` at the end."
        )
        if turn == 1:
            lines = [f"Name{i + 1}" + (NEW_MARK if i + 1 > first_marked else "") for i in range(count)]
            messages.append(f"{head}\n\nUse exactly this format:\n{reply_text(lines, turn)}")
        else:
            messages.append(f"{head} Follow the same format as before.")
    return tuple(messages)


def build_episodes(rows: Iterable[Sequence[str]], shape: Shape, seed: int) -> Iterator[Episode]:
    """One episode per row of 'First Last' names. Skips rows with too few names. One generator with this seed draws all of them."""
    rng = random.Random(seed)
    for index, row in enumerate(rows):
        draw = draw_episode(distinct_names(row), shape, rng)
        if draw is not None:
            truth = tuple("\n".join(lines) for lines in truths(draw))
            yield Episode(uid=f"row{index}", turns=user_turns(draw, shape, rng), truth=truth)


def turn_reward(reply: str, truth: str, turn: int) -> float:
    """Similarity of the reply's tagged block to the truth in [0, 1]: difflib's ratio to the power of 4.

    A reply without a block scores 0. Several blocks are attempts: the last one counts if each is strictly better than the one before,
    otherwise the score is 0.
    """
    tag = LATER_TAG if turn else FIRST_TAG
    expected = "\n".join(line.strip().lower() for line in truth.split("\n"))
    attempts = []
    for block in re.findall(f"<{tag}>(.*?)</{tag}>", reply, re.DOTALL):
        lines = [line.strip().lower() for line in block.split("\n") if line.strip()]
        attempts.append(difflib.SequenceMatcher(None, "\n".join(lines), expected).ratio() ** POWER if lines else 0.0)
    if not attempts or any(later <= earlier for earlier, later in pairwise(attempts)):
        return 0.0
    return attempts[-1]


def score(episode: Episode, replies: Sequence[str]) -> dict[str, float]:
    """Mean of the turn rewards, and the reward of each turn. A missing turn counts 0."""
    padded = [*replies, *[""] * (len(episode.truth) - len(replies))]
    rewards = [turn_reward(reply, truth, turn) for turn, (reply, truth) in enumerate(zip(padded, episode.truth, strict=True))]
    return {"reward": sum(rewards) / len(rewards)} | {f"turn_{turn + 1}": reward for turn, reward in enumerate(rewards)}


@cache
def embedded_pools() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first and last names in the package (US Census 1990, public domain)."""
    first, last = ((ASSETS / f"{kind}_names.txt").read_text().split() for kind in ("first", "last"))
    return tuple(first), tuple(last)


def random_row(rng: random.Random, length: int) -> list[str]:
    """Draw `length` 'First Last' names. No first and no last name repeats, so the order by either is unambiguous."""
    first, last = embedded_pools()
    return [f"{a} {b}" for a, b in zip(rng.sample(first, length), rng.sample(last, length), strict=True)]


def embedded_rows(count: int, shape: Shape, seed: int = 20240101) -> list[list[str]]:
    """Rows of random names from the package, used if no `task.path` is given."""
    rng = random.Random(seed)
    return [random_row(rng, shape.max_turns * shape.max_names) for _ in range(count)]


def names_of(row: dict[str, Any], index: int, path: str) -> list[str]:
    """The names of a row. Raises UserError, naming file and row, if the column does not hold a list of texts."""
    names = row["names"] or []
    good = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    require(good, f"task.path={path}: row {index}: column names must hold a list of 'First Last' strings")
    return list(names)


def build(config: TaskConfig) -> Task:
    """Build the task from generated rows, or from rows with a column `names`.

    Raises UserError if the package has too few names, or if the column does not hold lists.
    """
    shape = Shape(config.min_turns, config.max_turns, config.min_names, config.max_names)
    if config.path is None:
        if shape.max_turns * shape.max_names > len(embedded_pools()[0]):
            raise UserError("task.max_turns x task.max_names exceeds the shipped names; give task.path=")
        rows = embedded_rows(config.train_rows + (EVAL_ROWS if config.holdout else 0), shape)
        count = EVAL_ROWS
    else:
        rows = [names_of(row, index, config.path) for index, row in enumerate(read_rows(config.path, "train", ("names",))[0])]
        count = None
    train, held = hold_out(list(build_episodes(rows, shape, config.data_seed)), config, count)
    return Task("alphabet_sort", train, held, score)
