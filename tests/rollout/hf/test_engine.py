"""The hf engine: exact log-probabilities, seeds that survive batching, any architecture."""

from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from mth.config.choices import Dtype
from mth.config.schema import RolloutConfig
from mth.foundations.errors import UserError
from mth.models.load import Policy
from mth.rollout.engine import Request
from mth.rollout.hf.engine import HfEngine, sample
from mth.tickets.draw import model_parameters
from mth.training.logprobs import completion_logprobs
from tests.tickets.models import ticket_of


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


def test_logprobs_and_entropies_are_the_trainers(small_policy):
    asked = requests(8)
    for temperature in (1.0, 0.7):
        replies = engine_of(small_policy).generate(asked, 16, temperature, entropies=True)
        for request, completion in zip(asked, replies, strict=True):
            ids = torch.tensor([[*request.prompt, *completion.ids]])
            mask = torch.zeros_like(ids, dtype=torch.bool)
            mask[0, len(request.prompt) :] = True
            expected, entropies = completion_logprobs(small_policy.model, ids, mask, temperature)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(torch.tensor(completion.entropies), entropies, rtol=0, atol=1e-5)
        plain = engine_of(small_policy).generate(asked, 16, temperature)
        assert [(reply.ids, reply.logprobs, []) for reply in replies] == [(reply.ids, reply.logprobs, reply.entropies) for reply in plain]


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
    """A random causal model of another architecture."""
    torch.manual_seed(1)
    config = config_class(
        vocab_size=1200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **shape
    )
    return AutoModelForCausalLM.from_config(config).eval()


ARCHITECTURES = [
    (Qwen2Config, {}),  # what the paper trains
    (LlamaConfig, {}),
    (Gemma2Config, {"head_dim": 16, "sliding_window": 8}),  # alternates sliding and full layers; runs eager attention
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
]


@pytest.mark.parametrize(("family", "shape"), ARCHITECTURES, ids=["qwen2", "llama", "gemma2", "qwen2-sliding"])
def test_any_architecture_generates_what_its_own_forward_says(tokenizer, family, shape):
    """Padding, shared prefixes, small prefill batches, removed rows and a growing cache: every token against a plain forward pass."""
    policy = Policy(small(family, **shape), tokenizer, frozenset(range(60)))
    base = torch.randint(60, 1200, (5, 40), generator=torch.Generator().manual_seed(2)).tolist()
    asked = [Request(base[i % 5][: 20 + 4 * (i % 4)] + [100 + i % 7] * (1 + i % 3), 50 + i) for i in range(40)]
    with mock.patch("mth.rollout.hf.prefill.MAX_PREFILL_TOKENS_CPU", 60):
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


def test_completions_end_at_a_stop_token(small_model, tokenizer):
    many_stops = Policy(small_model, tokenizer, frozenset(range(300)))
    completions = engine_of(many_stops).generate(requests(30), 40, 1.0)
    for completion in completions:
        assert all(token >= 300 for token in completion.ids[:-1])
        assert completion.stopped == (completion.ids[-1] < 300)
        assert len(completion.ids) == len(completion.logprobs) <= 40
    assert any(c.stopped for c in completions)
    assert len({len(c.ids) for c in completions}) > 3  # rows left the batch at different times


def test_stops_of_a_call_end_completions_beside_the_models_own(small_policy, small_model, tokenizer):
    found = engine_of(small_policy).generate(requests(9), 20, 1.0, frozenset(range(300)))
    many_stops = engine_of(Policy(small_model, tokenizer, small_policy.stop_ids | frozenset(range(300))))
    assert found == many_stops.generate(requests(9), 20, 1.0) and any(reply.stopped for reply in found)


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
