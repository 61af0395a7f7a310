"""The interface of a task: episodes, which are the user's turns and the truth, and a function that scores the model's replies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mth.config.schema import TaskConfig
from mth.foundations.errors import UserError
from mth.foundations.seeds import derive_seed, permutation

EVAL_ROWS = 1024  # most rows that are held out if training and evaluation rows come from one source
Prompt = tuple[str, tuple[str, ...]]
Score = Callable[["Episode", Sequence[str]], dict[str, float]]
Played = tuple["Episode", Sequence[str]]  # an episode and the replies to its turns
ScoreAll = Callable[[Sequence[Played]], list[dict[str, float]]]
BeginScores = Callable[[Sequence[Played]], None]
Respond = Callable[["Episode", Sequence[str]], str | None]  # episode, replies so far -> the next user turn, or None at the end


@dataclass(frozen=True)
class Episode:
    """One prompt with one or several turns.

    turns: the user's messages, in order, as far as they do not depend on the model's replies. truth: the content of a perfect reply, as the task's `score` expects it. system: system prompt.
    shots: worked examples, question and reply, that a chat shows first. raw: the turn is the whole prompt as text, without a chat template.
    """

    uid: str
    turns: tuple[str, ...]
    truth: tuple[str, ...]
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    raw: bool = False


@dataclass(frozen=True)
class Task:
    """A named set of training and evaluation episodes.

    score(episode, replies) returns {"reward": r} with r in [0, 1], and perhaps further keys, whose means are logged. A missing reply, after
    a conversation that ended early, counts as an empty one. score_all: the same for many, where that is faster than one after another.
    stop: text that ends a reply, besides the model's own end; empty for none. worked: examples, question and reply, to put before a prompt.
    raw_form: how a question is written in a raw prompt. respond: gives the user's turns that depend on the replies, once all of an episode's
    `turns` are answered; None ends the conversation. It must be a function of its arguments alone. most_turns: where a conversation with
    `respond` ends in any case. begin_scores: for tasks whose scores take other processes a while: begins with episodes that have ended, while
    others are still generated, and does not wait. It is also called with none, now and then. It changes no score.
    """

    name: str
    train: Sequence[Episode]
    eval: Sequence[Episode]
    score: Score
    score_all: ScoreAll | None = None
    stop: str = ""
    worked: Sequence[tuple[str, str]] = ()
    raw_form: str = "{}"
    respond: Respond | None = None
    most_turns: int = 0
    begin_scores: BeginScores | None = None

    def scores(self, played: Sequence[Played]) -> list[dict[str, float]]:
        """The score of each episode."""
        return self.score_all(played) if self.score_all else [self.score(*one) for one in played]

    def next_turn(self, episode: Episode, replies: Sequence[str]) -> str | None:
        """What the user says after these replies, of which there is one at least; None at the end of the conversation."""
        if len(replies) < len(episode.turns):
            return episode.turns[len(replies)]
        return self.respond(episode, replies) if self.respond is not None and len(replies) < self.most_turns else None

    def turns_of(self, episode: Episode) -> int:
        """Most turns that an episode may have."""
        return max(len(episode.turns), self.most_turns if self.respond is not None else 0)


def is_right(reward: float) -> bool:
    """A reply passes when its reward is 1 (Alphabet Sort: every turn exact)."""
    return reward >= 1 - 1e-9


def hold_out(episodes: Sequence[Episode], config: TaskConfig, count: int | None = None) -> tuple[list[Episode], list[Episode]]:
    """Split episodes into training and evaluation. Holds out `count` at random (default: a fifth, at most EVAL_ROWS).

    Episodes that repeat a prompt stay together, so that no prompt is both trained and evaluated. With `task.holdout=false` both parts have
    all episodes. Raises UserError if there are fewer than two prompts to split.
    """
    if not config.holdout:
        return list(episodes), list(episodes)
    repeats: dict[Prompt, list[int]] = {}
    for index, episode in enumerate(episodes):
        repeats.setdefault(prompt_of(episode), []).append(index)
    where = f"task {config.name}" if config.path is None else f"task.path={config.path}"
    if len(repeats) < 2:
        raise UserError(f"{where}: {len(repeats)} usable prompts cannot be split; give more or set task.holdout=false")
    wanted, held = count or max(1, min(EVAL_ROWS, len(episodes) // 5)), set[int]()
    prompts = iter(dict.fromkeys(prompt_of(episodes[i]) for i in permutation(derive_seed("holdout", config.data_seed), len(episodes))))
    for _ in range(len(repeats) - 1):  # one prompt at least is trained
        if len(held) >= wanted:
            break
        held.update(repeats[next(prompts)])
    return [e for i, e in enumerate(episodes) if i not in held], [e for i, e in enumerate(episodes) if i in held]


def prompt_of(episode: Episode) -> Prompt:
    """What the model reads of an episode."""
    return episode.system, episode.turns
