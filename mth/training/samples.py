"""Makes samples of rollouts: which are kept, and their text with special tokens visible. Draws nothing and asks the model nothing."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from mth.foundations.statistics import mean
from mth.rollout.player import Rollout
from mth.runs.samples import EVAL, TRAIN, Sample


def eval_samples(
    tokenizer: PreTrainedTokenizerBase, task: str, rollouts: Sequence[Rollout], replies: int, prompts: int | None
) -> list[Sample]:
    """Samples of an evaluation. rollouts: `replies` adjacent ones per prompt. prompts: how many of the first prompts are kept; None for all.

    The step is to be filled in by who stores them.
    """
    kept = rollouts if prompts is None else rollouts[: prompts * replies]
    return [
        _sample(tokenizer, EVAL, task, rollout, index % replies, entropy=mean(rollout.entropies) if rollout.entropies else None)
        for index, rollout in enumerate(kept)
    ]


def train_samples(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rollouts: Sequence[Rollout],
    rewards: torch.Tensor,
    advantages: torch.Tensor,
    groups: int,
    entropies: Mapping[int, float],
) -> list[Sample]:
    """Best and worst reply of the `groups` groups with the widest spread of rewards, the first of equals. A group of equal rewards has one.

    rewards, advantages: [P, G], of P groups of G rollouts. entropies: mean entropy by the rollout's index, for those that the update computed.
    """
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    widest = torch.argsort(spread, descending=True, stable=True)[:groups].tolist()
    kept = [(group, reply) for group in widest for reply in dict.fromkeys((int(rewards[group].argmax()), int(rewards[group].argmin())))]
    indices = [group * rewards.shape[1] + reply for group, reply in kept]
    return [
        _sample(tokenizer, TRAIN, task, rollouts[index], reply, advantages[group, reply].item(), entropies.get(index))
        for index, (group, reply) in zip(indices, kept, strict=True)
    ]


def _sample(
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    task: str,
    rollout: Rollout,
    reply: int,
    advantage: float | None = None,
    entropy: float | None = None,
) -> Sample:
    prompt, *turns = _texts(tokenizer, rollout)
    logprobs = [value for value, sampled in zip(rollout.logprobs, rollout.loss_mask, strict=True) if sampled]
    return Sample(
        step=0,
        kind=kind,
        task=task,
        uid=_storable(rollout.episode.uid),
        reply=reply,
        prompt=prompt,
        turns=turns,
        stop="cut" if rollout.truncated else "stopped",
        tokens=rollout.completion_tokens,
        reward=rollout.reward,
        scores=rollout.scores,
        advantage=advantage,
        logprob=mean(logprobs) if logprobs else None,
        truth=[_storable(text) for text in rollout.episode.truth],
        entropy=entropy,
    )


def _texts(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> Iterator[str]:
    """The conversation in turns, the user's and the model's."""
    start = 0
    for _, members in groupby(rollout.loss_mask):
        end = start + len(list(members))
        yield str(tokenizer.decode(rollout.ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        start = end


def _storable(text: str) -> str:
    """The text with halves of surrogate pairs, which UTF-8 lacks, written out."""
    return text.encode("utf-8", "backslashreplace").decode()
