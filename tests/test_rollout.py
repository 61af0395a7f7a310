"""The hf engine and conversations: exact log-probabilities, seeds that survive batching, only sampled tokens in the loss."""

from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from mth.algorithm.logprobs import completion_logprobs
from mth.batches import collate
from mth.config import Dtype, RolloutConfig
from mth.errors import UserError
from mth.policy import Policy, model_parameters
from mth.rollout.conversation import Script, play
from mth.rollout.engine import Completion, Request
from mth.rollout.hf import HfEngine, parts, sample, shared_length
from mth.rollout.kv import GrowingLayer, drop, fork, growing_cache, join
from mth.tasks.base import Episode, Task
from tests.tickets.test_ticket import ticket_of


def engine_of(policy, **config):
    return HfEngine(policy, ticket_of(policy.model, 95), RolloutConfig(**config))


def requests(count, shared=False):
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(10, 400, (3 + i % 5,), generator=generator).tolist() for i in range(count)]
    return [Request(prompts[0 if shared else i], 1000 + i) for i in range(count)]


def test_seeds_survive_batching_and_order(small_policy):
    asked = requests(12)
    whole = engine_of(small_policy, batch_size=12).generate(asked, 20, 1.0)
    parts = engine_of(small_policy, batch_size=5).generate(asked[::-1], 20, 1.0)[::-1]
    assert [c.ids for c in whole] == [c.ids for c in parts]
    assert len({tuple(c.ids) for c in whole}) > 6


def test_equal_prompts_share_their_prefix_and_differ_by_seed(small_policy):
    engine = engine_of(small_policy)
    group = engine.generate(requests(6, shared=True), 12, 1.0)
    alone = [engine.generate([request], 12, 1.0)[0] for request in requests(6, shared=True)]
    assert [c.ids for c in group] == [c.ids for c in alone]
    assert len({tuple(c.ids) for c in group}) == 6


def test_logprobs_are_the_trainers(small_policy):
    asked = requests(8)
    for temperature in (1.0, 0.7):
        for request, completion in zip(asked, engine_of(small_policy).generate(asked, 16, temperature), strict=True):
            ids = torch.tensor([[*request.prompt, *completion.ids]])
            mask = torch.zeros_like(ids, dtype=torch.bool)
            mask[0, len(request.prompt) :] = True
            expected, _ = completion_logprobs(small_policy.model, ids, mask, temperature)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)


def test_greedy_agrees_with_transformers_generate(small_policy):
    for request in requests(4):
        ours = engine_of(small_policy).generate([request], 10, 0.0)[0]
        ids = torch.tensor([request.prompt])
        stops = sorted(small_policy.stop_ids)
        theirs = small_policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
        assert ours.ids == theirs[0, ids.shape[1] :].tolist()


def small(config_class, **shape):
    """A random causal model of another architecture, large enough in its weights that its choices differ."""
    torch.manual_seed(1)
    config = config_class(
        vocab_size=1200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **shape
    )
    return AutoModelForCausalLM.from_config(config).eval()


ARCHITECTURES = [
    (Qwen2Config, {}),  # what the paper trains
    (LlamaConfig, {}),
    (Gemma2Config, {"head_dim": 16, "sliding_window": 8}),  # sliding and full layers by turns; runs eager attention
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
]


@pytest.mark.parametrize(("family", "shape"), ARCHITECTURES, ids=["qwen2", "llama", "gemma2", "qwen2-sliding"])
def test_any_architecture_generates_what_its_own_forward_says(tokenizer, family, shape):
    """Padding, shared beginnings, pieces, rows that leave and a cache that grows: token by token against a forward without any of it."""
    policy = Policy(small(family, **shape), tokenizer, frozenset(range(60)))
    base = torch.randint(60, 1200, (5, 40), generator=torch.Generator().manual_seed(2)).tolist()
    asked = [Request(base[i % 5][: 20 + 4 * (i % 4)] + [100 + i % 7] * (1 + i % 3), 50 + i) for i in range(40)]
    with mock.patch("mth.rollout.hf.READ_CPU", 60):
        got = engine_of(policy).generate(asked, 48, 1.0)
    assert len({len(c.ids) for c in got}) > 5
    for request, completion in zip(asked, got, strict=True):
        ids = torch.tensor([[*request.prompt, *completion.ids]])
        with torch.no_grad():
            logits = policy.model(ids, use_cache=False).logits[0, len(request.prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion.ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)


def test_the_model_is_left_as_it_was(small_policy):
    before = small_policy.model.config._attn_implementation
    engine_of(small_policy).generate(requests(2), 3, 1.0)
    assert small_policy.model.config._attn_implementation == before == "sdpa"


def test_shared_length_reads_the_fewest_tokens():
    group = [(1, 2, 3, 4, 5, 6, 7, 8, n, n) for n in range(4)]
    assert shared_length(group) == 8
    other = [(1, 9, 9, 9, 9, 9, 9, 9, n, n) for n in range(4)]
    assert shared_length(group + other) == 8  # two beginnings of eight, not one of one
    assert shared_length([(1, 2, 3), (4, 5, 6)]) == shared_length([(1, 2, 3)]) == shared_length([(5,), (5, 6)]) == 0


def test_parts_hold_at_most_the_limit_and_every_prompt_once():
    prompts = [(7,) * n for n in (3, 3, 4, 6, 9, 30)]
    pieces = list(parts(prompts, 1, 12))
    assert [p for piece in pieces for p in piece] == prompts
    assert [len(piece) for piece in pieces] == [3, 1, 1, 1]
    assert list(parts(prompts, 1, None)) == [prompts]


def test_cache_grows_joins_and_drops_rows_like_plain_tensors():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(6, 2, 90, 4, generator=generator)
    layer = GrowingLayer()
    for i in range(40):
        got, _ = layer.update(keys[:, :, i : i + 1], -keys[:, :, i : i + 1])
    assert torch.equal(got, keys[:, :, :40])
    cache = growing_cache(Qwen2Config(num_hidden_layers=1))
    cache.layers = [layer]
    done = torch.tensor([True, False, False, True, False, False])
    order = drop(cache, done, (~done).nonzero().squeeze(1))
    assert sorted(order.tolist()) == [1, 2, 4, 5]
    got, negative = layer.update(keys[order][:, :, 40:], -keys[order][:, :, 40:])
    assert torch.equal(got, keys[order])
    assert torch.equal(negative, -got)
    other = fork(cache, torch.tensor([1, 1]))
    other.layers[0].update(keys[:2, :, :3], keys[:2, :, :3])
    both, _ = join([cache, other]).layers[0].update(keys[:, :, :1], keys[:, :, :1])
    assert both.shape == (6, 2, 94, 4)
    assert torch.equal(both[:4, :, 3:93], keys[order])
    assert (both[:4, :, :3] == 0).all()
    assert torch.equal(both[4, :, :90], keys[order[1]])


def test_replies_end_at_a_stop_token(small_model, tokenizer):
    everything = Policy(small_model, tokenizer, frozenset(range(300)))
    completions = engine_of(everything).generate(requests(30), 40, 1.0)
    for completion in completions:
        assert all(token >= 300 for token in completion.ids[:-1])
        assert completion.stopped == (completion.ids[-1] < 300)
        assert len(completion.ids) == len(completion.logprobs) <= 40
    assert any(c.stopped for c in completions)
    assert len({len(c.ids) for c in completions}) > 3  # rows left the batch at different times


def test_sampling_follows_the_distribution():
    logits = torch.tensor([0.5, 0.0, -1.0, 2.0]).expand(40_000, 4)
    noise = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    token, logprob = sample(logits, noise, 0.5)
    probabilities = torch.softmax(logits[0] / 0.5, 0)
    frequencies = torch.bincount(token, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, probabilities, rtol=0, atol=0.01)
    torch.testing.assert_close(logprob.exp(), probabilities[token])


def test_context_is_checked_before_anything_is_generated(small_policy):
    with pytest.raises(UserError, match="exceeds the model's context of 512"):
        engine_of(small_policy).generate([Request([5] * 500, 0)], 20, 1.0)


@pytest.mark.parametrize("dtype", [None, Dtype.bfloat16])
def test_synced_values_generate_and_the_trainer_keeps_its_own(small_policy, dtype):
    engine = engine_of(small_policy, dtype=dtype)
    before = {n: p.detach().clone() for n, p in small_policy.model.named_parameters()}
    asked = requests(4)
    first = engine.generate(asked, 12, 0.0)
    moved = engine.ticket.values.detach() + 0.3 * torch.randn(engine.ticket.active_parameters, generator=torch.Generator().manual_seed(0))
    engine.sync(moved)
    second = engine.generate(asked, 12, 0.0)
    assert [c.ids for c in first] != [c.ids for c in second]
    assert all(torch.equal(p, before[n]) for n, p in small_policy.model.named_parameters())
    engine.sync(engine.ticket.values.detach())
    assert [c.ids for c in engine.generate(asked, 12, 0.0)] == [c.ids for c in first]
    if dtype is not None:
        assert {p.dtype for p in model_parameters(engine.model).values()} == {torch.bfloat16}
        assert {b.dtype for b in engine.model.buffers() if b.is_floating_point()} == {torch.float32}  # rotary frequencies


class Parrot:
    """An engine that says what it is told, one list of completions per turn."""

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
    right, wrong = play(engine, Script(tokenizer), task, [episode], 2, 8, 1.0, ("seed",))
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
    rollouts = play(Parrot(tokenizer, [["a", "b b b", "c c"]]), Script(tokenizer), task, [episode], 3, 8, 1.0, ())
    for i, rollout in enumerate(rollouts):
        rollout.logprobs = [float(i)] * len(rollout.ids)
    batches = collate(rollouts, [0.0, 1.0, 2.0], 24, torch.device("cpu"))
    assert len(batches) > 1
    assert sum(int(b.loss_mask.sum()) for b in batches) == sum(r.completion_tokens for r in rollouts)
    for b in batches:
        assert torch.equal(b.rollout_logprobs, b.advantages)
        assert b.loss_mask.sum() == b.advantages.numel()
