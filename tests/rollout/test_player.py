"""Rolled out episodes: the conversation is what was sampled, and only sampled tokens are in the loss."""

import pytest
import torch

from mth.rollout.engine import Completion
from mth.rollout.player import ChatRenderer, Player
from mth.tasks.base import Episode, Task
from mth.training.batches import collate


class Parrot:
    """An engine that returns given texts, one list per turn."""

    def __init__(self, tokenizer, texts, stopped=True):
        self.tokenizer, self.texts, self.stopped, self.seen = tokenizer, iter(texts), stopped, []

    def generate(self, requests, max_tokens, temperature):
        self.seen.append(requests)
        end = [self.tokenizer.eos_token_id] if self.stopped else []
        replies = [self.tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in next(self.texts)]
        return [Completion(ids, [-0.5] * len(ids), self.stopped) for ids in replies]


@pytest.mark.parametrize("stopped", [True, False])
def test_multi_turn_history_is_what_was_sampled(tokenizer, stopped):
    episode = Episode("e", ("first question", "second question"), ("a", "b"), system="be brief")
    task = Task("t", [episode], [episode], lambda e, replies: {"reward": float(replies == ["one", "two"])})
    engine = Parrot(tokenizer, [["one", "other"], ["two", "two"]], stopped)
    player = Player(engine, ChatRenderer(tokenizer))
    right, wrong = player.rollout_episodes(task, [episode], group_size=2, max_tokens=8, temperature=1.0, seed=("seed",))
    text = (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nfirst question<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\nsecond question<|im_end|>\n<|im_start|>assistant\ntwo" + ("<|im_end|>" if stopped else "")
    )
    assert tokenizer.decode(right.ids) == text
    said = tokenizer.decode([token for token, sampled in zip(right.ids, right.loss_mask, strict=True) if sampled])
    assert said == ("one<|im_end|>two<|im_end|>" if stopped else "onetwo")
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert right.truncated == (not stopped)
    seeds = [request.seed for turn in engine.seen for request in turn]
    assert len(set(seeds)) == 4
    assert len(right.ids) == len(right.loss_mask) == len(right.logprobs)


def test_collate_keeps_tokens_logprobs_and_advantages_together(tokenizer):
    episode = Episode("e", ("q",), ("a",))
    task = Task("t", [episode], [episode], lambda e, replies: {"reward": 0.0})
    player = Player(Parrot(tokenizer, [["a", "b b b", "c c"]]), ChatRenderer(tokenizer))
    rollouts = player.rollout_episodes(task, [episode], group_size=3, max_tokens=8, temperature=1.0, seed=())
    for i, rollout in enumerate(rollouts):
        rollout.logprobs = [float(i)] * len(rollout.ids)
    batches = collate(rollouts, [0.0, 1.0, 2.0], 24, torch.device("cpu"))
    assert len(batches) > 1
    assert sum(int(b.loss_mask.sum()) for b in batches) == sum(r.completion_tokens for r in rollouts)
    for b in batches:
        assert torch.equal(b.rollout_logprobs, b.advantages)
        assert b.loss_mask.sum() == b.advantages.numel()
