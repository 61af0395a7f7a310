"""Rolls episodes out: renders the user's turns, generates the replies, and keeps both as token ids.

The trainer gets the token ids that were sampled. Text is never tokenized a second time.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mth.foundations.errors import require
from mth.foundations.seeds import derive_seed
from mth.foundations.statistics import mean
from mth.models.chat import MARK, begins_texts, control_texts, render_chat, template_fault, turn_end
from mth.models.tokenizer import stop_tokens
from mth.rollout.engine import Completion, Request, RolloutEngine
from mth.tasks.base import Episode, Task

BREAK = "\ufdd1"  # where a text is split before it is encoded; reserved, as MARK is


@dataclass
class Rollout:
    """One episode with the model's replies.

    ids, loss_mask, logprobs: one entry per token of the conversation. loss_mask: True at tokens that the model sampled.
    logprobs: of sampled tokens, in nats; 0 elsewhere. truncated: True if a reply reached the token limit. scores: of the task. entropies: one
    per sampled token, in nats; empty if they were not asked for.
    """

    episode: Episode
    ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    truncated: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    entropies: list[float] = field(default_factory=list)

    @property
    def reward(self) -> float:
        """The task's reward, in [0, 1]."""
        return self.scores["reward"]

    @property
    def completion_tokens(self) -> int:
        """Number of sampled tokens in all turns."""
        return sum(self.loss_mask)

    def append_prompt(self, ids: Sequence[int]) -> None:
        """Append tokens that the model did not sample."""
        self.ids += ids
        self.loss_mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def append_completion(self, completion: Completion, text: str) -> None:
        """Append a reply, given as tokens and as text."""
        self.ids += completion.ids
        self.loss_mask += [True] * len(completion.ids)
        self.logprobs += completion.logprobs
        self.entropies += completion.entropies
        self.replies.append(text)
        self.truncated |= not completion.stopped


def score_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean of every score over the rollouts that have it: an episode with fewer turns has fewer scores."""
    names = dict.fromkeys(key for rollout in rollouts for key in rollout.scores)
    return {key: mean([rollout.scores[key] for rollout in rollouts if key in rollout.scores]) for key in names}


class ChatRenderer:
    """Renders conversations to token ids with the tokenizer's chat template, one user turn at a time.

    Where a user's text or a system prompt spells a control token, for instance `<|im_end|>`, it stays text: it is split behind its first
    character. All other texts are encoded as the template wrote them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._turn_end = turn_end(tokenizer)
        self._control = re.compile("|".join(re.escape(text) for text in control_texts(tokenizer) if len(text) > 1) or "(?!)")
        self._stops: dict[str, frozenset[int]] = {"": frozenset()}
        self._faults: dict[tuple[str, ...], str | None] = {}
        self._merges_system = False

    def opening(self, episode: Episode) -> list[int]:
        """Token ids up to the model's first reply. Raises UserError if the template cannot render the episode's turns.

        A raw episode is its text, behind the begin-of-text token if the tokenizer puts that before a text.
        """
        if episode.raw:
            begin = [self.tokenizer.bos_token_id] if begins_texts(self.tokenizer) else []
            return begin + self._encode(self._as_text(episode, episode.turns[0]))
        return self._encode(render_chat(self.tokenizer, self._first_messages(episode)))

    def between_turns(self, episode: Episode, text: str, last_id: int) -> list[int]:
        """Token ids between two replies: the template's end of the first, and the user's next turn `text`.

        last_id: last token of the first reply. If it is already the end-of-turn token, the template's is left out. Raises UserError if the
        template has no place for a second turn.
        """
        messages = [
            *self._first_messages(episode),
            {"role": "assistant", "content": MARK},
            {"role": "user", "content": self._as_text(episode, text)},
        ]
        fault = self._fault(*(message["role"] for message in messages))
        require(fault is None, str(fault))
        ids = self._encode(render_chat(self.tokenizer, messages).split(MARK, 1)[1])
        return ids[1:] if ids and ids[0] == last_id else ids

    def stops(self, stop: str) -> frozenset[int]:
        """Ids of the tokens that hold the text which ends a reply. Raises UserError if the text is not a single token."""
        if stop not in self._stops:
            self._stops[stop] = stop_tokens(self.tokenizer, stop)
        return self._stops[stop]

    def decode(self, completion: Completion, stop: str = "") -> str:
        """The text of a reply up to the text that ends it, without special tokens and without the template's end of a turn."""
        ids = completion.ids[:-1] if completion.ids[-1:] == [self._turn_end] else completion.ids
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text.partition(stop)[0] if stop else text

    def _first_messages(self, episode: Episode) -> list[dict[str, str]]:
        """The messages before the first reply. A system prompt becomes the user's first lines if the template has no place for it."""
        system, user = self._as_text(episode, episode.system), self._as_text(episode, episode.turns[0])
        before = [self._as_text(episode, text) for shot in episode.shots for text in shot]
        later = ("assistant", "user") * (len(episode.shots) + (len(episode.turns) > 1))
        users = [{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), [*before, user], strict=False)]
        if system and self._fault("system", "user", *later) is None:
            return [{"role": "system", "content": system}, *users]
        require((fault := self._fault("user", *later)) is None, str(fault))
        if not system:
            return users
        if not self._merges_system:
            tqdm.write(
                "warning: model.tokenizer: the chat template takes no system prompt; it is written at the start of the user's first turn"
            )
            self._merges_system = True
        return [{"role": "user", "content": f"{system}\n\n{users[0]['content']}"}, *users[1:]]

    def _fault(self, *roles: str) -> str | None:
        """`template_fault`, found out once."""
        if roles not in self._faults:
            self._faults[roles] = template_fault(self.tokenizer, *roles)
        return self._faults[roles]

    def _as_text(self, episode: Episode, text: str) -> str:
        """The text with a BREAK inside of everything that would become a control token."""
        require(
            not {MARK, BREAK} & set(text), f"task: the prompt of {episode.uid} contains U+FDD0 or U+FDD1, which mth needs; remove the row"
        )
        return self._control.sub(lambda match: f"{match[0][0]}{BREAK}{match[0][1:]}", text)

    def _encode(self, text: str) -> list[int]:
        parts = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(BREAK))
        return [token for part in parts for token in part]


def number_repeats(uids: Sequence[str]) -> list[str]:
    """Make names unique: the second "a" becomes "a#1".

    A step that crosses an epoch may hold an episode twice. The two need different seeds.
    """
    seen: Counter[str] = Counter()
    names = []
    for uid in uids:
        names.append(f"{uid}#{seen[uid]}" if seen[uid] else uid)
        seen[uid] += 1
    return names


@dataclass(frozen=True)
class Player:
    """An engine and the renderer of its model's chat template."""

    engine: RolloutEngine
    renderer: ChatRenderer

    def rollout_episodes(
        self,
        task: Task,
        episodes: Sequence[Episode],
        *,
        group_size: int,
        max_tokens: int,
        temperature: float,
        seed: tuple[object, ...],
        entropies: bool = False,
    ) -> list[Rollout]:
        """Roll every episode out `group_size` times, to its last turn, and score it.

        Rollouts of one episode are adjacent. A reply that reaches `max_tokens` stays in the history, and the conversation goes on.
        `seed` names this call's random streams. entropies: see RolloutEngine. Raises UserError if a prompt does not fit the context, EngineError if the engine fails.
        """
        names, stops = number_repeats([episode.uid for episode in episodes]), self.renderer.stops(task.stop)
        openings = [self.renderer.opening(episode) for episode in episodes]
        rollouts = [Rollout(episode) for episode in episodes for _ in range(group_size)]
        for index, rollout in enumerate(rollouts):
            rollout.append_prompt(openings[index // group_size])
        turn, unfinished = 0, list(enumerate(rollouts))
        while unfinished:
            requests = [Request(r.ids, derive_seed(*seed, names[i // group_size], i % group_size, turn)) for i, r in unfinished]
            texts: dict[int, str] = {}  # of replies that ended while others were still generated
            begin = None if task.begin_scores is None else partial(self._begin_scores, task, unfinished, texts)
            completions = self.engine.generate(requests, max_tokens, temperature, stops, ended=begin, entropies=entropies)
            for place, completion in enumerate(completions):
                text = texts[place] if place in texts else self.renderer.decode(completion, task.stop)
                unfinished[place][1].append_completion(completion, text)
            turn, unfinished = turn + 1, [(i, rollout) for i, rollout in unfinished if self._goes_on(task, rollout)]
        for rollout, scores in zip(rollouts, task.scores([(rollout.episode, rollout.replies) for rollout in rollouts]), strict=True):
            rollout.scores = scores
        return rollouts

    def _begin_scores(
        self, task: Task, unfinished: Sequence[tuple[int, Rollout]], texts: dict[int, str], ended: Sequence[tuple[int, Completion]]
    ) -> None:
        """Begin to score the conversations that these replies certainly end. Leaves the replies' texts in `texts`."""
        assert task.begin_scores is not None
        played = []
        for place, completion in ended:
            rollout = unfinished[place][1]
            texts[place] = self.renderer.decode(completion, task.stop)
            if len(rollout.replies) + 1 == task.turns_of(rollout.episode):
                played.append((rollout.episode, [*rollout.replies, texts[place]]))
        task.begin_scores(played)

    def _goes_on(self, task: Task, rollout: Rollout) -> bool:
        """Append the user's next turn; False if there is none."""
        text = task.next_turn(rollout.episode, rollout.replies)
        if text is not None:
            rollout.append_prompt(self.renderer.between_turns(rollout.episode, text, rollout.ids[-1]))
        return text is not None
