"""Measures whether every episode of a task fits the model's context, before anything is generated."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from mth.foundations.errors import UserError
from mth.rollout.player import ChatRenderer
from mth.tasks.base import Episode, Task

NAMED = 3  # episodes that a message names
TEMPLATE_BYTES = 400  # more than templates write around a message, their default system prompt included


def prompt_tokens(renderer: ChatRenderer, episode: Episode) -> int:
    """Tokens of an episode that the model does not sample: the opening, and what stands before each later reply."""
    later = (len(renderer.between_turns(episode, text, -1)) for text in episode.turns[1:])
    return len(renderer.opening(episode)) + sum(later)


def at_most(episode: Episode) -> int:
    """A bound on `prompt_tokens` that needs no tokenizer: a token holds a byte at least."""
    texts = [episode.system, *episode.turns, *(text for shot in episode.shots for text in shot)]
    return sum(len(text.encode()) + TEMPLATE_BYTES for text in texts)


def fitting(task: Task, renderer: ChatRenderer, context: int, max_tokens: int, most: int | None) -> Task:
    """The task without the episodes whose prompts are longer than `most` tokens (`task.max_prompt_tokens`), of which it says how many.

    max_tokens: of a reply, of which every turn may have so many. Raises UserError, naming the episodes, if some do not fit the context.
    """
    parts, left_out, overlong = [], 0, dict[str, int]()
    for part in (task.train, task.eval):
        kept: list[Episode] = []
        for episode in part:
            replies = max_tokens * task.turns_of(episode)
            short = at_most(episode) <= min(context - replies, context if most is None else most)
            tokens = 0 if short else prompt_tokens(renderer, episode)
            if most is not None and tokens > most:
                left_out += 1
                continue
            if tokens + replies > context:
                overlong[episode.uid] = tokens
            kept.append(episode)
        parts.append(kept)
    if overlong:
        raise UserError(_message(task, overlong, context, max_tokens))
    if left_out:
        count = len(task.train) + len(task.eval)
        print(f"{task.name}: {left_out} of {count} episodes have prompts of more than {most} tokens and are left out", file=sys.stderr)
    return replace(task, train=parts[0], eval=parts[1]) if left_out else task


def _message(task: Task, overlong: dict[str, int], context: int, max_tokens: int) -> str:
    named: Sequence[str] = [f"{uid} ({tokens:,} tokens)" for uid, tokens in overlong.items()][:NAMED]
    more = f" and {len(overlong) - NAMED} more" if len(overlong) > NAMED else ""
    return (
        f"task {task.name}: {', '.join(named)}{more}: too long for the model's context of {context:,} with replies of {max_tokens} tokens a turn; "
        "leave long prompts out with task.max_prompt_tokens=, or lower rollout.max_tokens, eval.max_tokens or task.shots"
    )
