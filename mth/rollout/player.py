"""Rolls episodes out: renders the user's turns, generates the replies, and keeps both as token ids.

The trainer gets the token ids that were sampled. Text is never tokenized a second time.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from mth.foundations.seeds import derive_seed
from mth.rollout.engine import Completion, Request, RolloutEngine
from mth.tasks.base import Episode, Task


@dataclass
class Rollout:
    """One episode with the model's replies.

    ids, loss_mask, logprobs: one entry per token of the conversation. loss_mask: True at tokens that the model sampled.
    logprobs: of sampled tokens, in nats; 0 elsewhere. truncated: True if a reply reached the token limit. scores: of the task.
    """

    episode: Episode
    ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    truncated: bool = False
    scores: dict[str, float] = field(default_factory=dict)

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
        self.replies.append(text)
        self.truncated |= not completion.stopped


class ChatRenderer:
    """Renders conversations to token ids with the tokenizer's chat template, one user turn at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def opening(self, episode: Episode) -> list[int]:
        """Token ids up to the model's first reply."""
        return self._encode(self._render(self._first_messages(episode)))

    def between_turns(self, episode: Episode, turn: int, last_id: int) -> list[int]:
        """Token ids between reply `turn - 1` and reply `turn`: the template's end of the reply, and the next user turn.

        last_id: last token of reply `turn - 1`. If it is already the end-of-turn token, the template's is left out.
        """
        placeholder = "\u241e"  # marks where the template ends the reply
        messages = [
            *self._first_messages(episode),
            {"role": "assistant", "content": placeholder},
            {"role": "user", "content": episode.turns[turn]},
        ]
        ids = self._encode(self._render(messages).split(placeholder, 1)[1])
        return ids[1:] if ids and ids[0] == last_id else ids

    def decode(self, completion: Completion) -> str:
        """The text of a reply, without special tokens."""
        return str(self.tokenizer.decode(completion.ids, skip_special_tokens=True))

    def _first_messages(self, episode: Episode) -> list[dict[str, str]]:
        system = [{"role": "system", "content": episode.system}] if episode.system else []
        return [*system, {"role": "user", "content": episode.turns[0]}]

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


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
    ) -> list[Rollout]:
        """Roll every episode out `group_size` times, to its last turn, and score it.

        Rollouts of one episode are adjacent. A reply that reaches `max_tokens` stays in the history, and the conversation goes on.
        `seed` names this call's random streams. Raises UserError if a prompt does not fit the context, EngineError if the engine fails.
        """
        names = number_repeats([episode.uid for episode in episodes])
        openings = [self.renderer.opening(episode) for episode in episodes]
        rollouts = [Rollout(episode) for episode in episodes for _ in range(group_size)]
        for index, rollout in enumerate(rollouts):
            rollout.append_prompt(openings[index // group_size])
        for turn in range(max((len(episode.turns) for episode in episodes), default=0)):
            unfinished = [(i, rollout) for i, rollout in enumerate(rollouts) if turn < len(rollout.episode.turns)]
            if turn > 0:
                for _, rollout in unfinished:
                    rollout.append_prompt(self.renderer.between_turns(rollout.episode, turn, rollout.ids[-1]))
            requests = [Request(r.ids, derive_seed(*seed, names[i // group_size], i % group_size, turn)) for i, r in unfinished]
            completions = self.engine.generate(requests, max_tokens, temperature)
            for (_, rollout), completion in zip(unfinished, completions, strict=True):
                rollout.append_completion(completion, self.renderer.decode(completion))
        for rollout in rollouts:
            rollout.scores = task.score(rollout.episode, rollout.replies)
        return rollouts
