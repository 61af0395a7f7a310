"""Rollouts packed into rows."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, Qwen2Config

from mth.rollout.player import Rollout
from mth.tasks.base import Episode
from mth.training.batches import attention_cost, collate, pack_rows
from mth.training.logprobs import completion_logprobs

CPU = torch.device("cpu")


def rollout(prompt, parts, name="e"):
    """parts: (tokens, whether the model sampled them) behind the prompt."""
    played = Rollout(Episode(name, ("q",), ("a",)))
    played.append_prompt(prompt)
    for ids, sampled in parts:
        played.ids += ids
        played.loss_mask += [sampled] * len(ids)
        played.logprobs += [-float(i) for i in ids]
    return played


def two_groups(generator):
    """Groups of four and three, of one and two turns, with replies of every length."""
    draw = lambda n: torch.randint(10, 200, (n,), generator=generator).tolist()  # noqa: E731
    first, second = draw(30), draw(17)
    return [rollout(first, [(draw(n), True)]) for n in (5, 1, 9, 9)] + [
        rollout(second, [(draw(n), True), (draw(4), False), (draw(3), True)], "f") for n in (2, 6, 4)
    ]


@pytest.mark.parametrize("budget", [1, 60, 4096])
def test_every_token_keeps_its_logprob_and_place(small_model, budget):
    rollouts = two_groups(torch.Generator().manual_seed(0))
    cost = attention_cost(small_model)
    assert 0 < cost < 1
    rows = pack_rows(rollouts, cost, budget)
    assert sorted(i for row in rows for i in row.members) == list(range(7))
    assert all(row.tokens <= max(budget, len(rollouts[row.members[0]].ids)) for row in rows)
    assert (max(len(row.members) for row in rows) > 1) == (budget > 1)
    seen = {}
    for batch in collate(rollouts, [float(i) for i in range(7)], budget, CPU, cost):
        with torch.no_grad():
            got, _ = completion_logprobs(small_model, batch.ids, batch.loss_mask, 1.0, batch.layout)
        for member, computed, recorded in zip(batch.advantages.tolist(), got.tolist(), batch.rollout_logprobs.tolist(), strict=True):
            seen.setdefault(int(member), []).append((computed, recorded))
    for i, played in enumerate(rollouts):
        ids, mask = torch.tensor([played.ids]), torch.tensor([played.loss_mask])
        with torch.no_grad():
            alone, _ = completion_logprobs(small_model, ids, mask, 1.0)
        recorded = [p for p, sampled in zip(played.logprobs, played.loss_mask, strict=True) if sampled]
        assert [computed for computed, _ in seen[i]] == pytest.approx(alone.tolist(), abs=1e-5)
        assert [was for _, was in seen[i]] == recorded


def test_long_replies_do_not_share_a_row():
    """Attention over a row with a mask grows with the square of its length: behind a short prompt sharing does not pay."""
    prompt = list(range(10, 20))
    short = [rollout(prompt * 10, [([5] * 8, True)]) for _ in range(8)]
    long = [rollout(prompt, [([5] * 900, True)]) for _ in range(8)]
    assert [len(row.members) for row in pack_rows(short, 1e-4, 4096)] == [8]
    assert [len(row.members) for row in pack_rows(long, 1e-4, 4096)] == [1] * 8
    assert [len(row.members) for row in pack_rows(short, float("inf"), 4096)] == [1] * 8


def test_equal_prompts_of_other_groups_are_not_needed_to_share():
    rollouts = [rollout([1, 2, 3], [([4], True)]), rollout([1, 2, 5], [([4], True)]), rollout([1, 2, 3], [([4], True)])]
    assert [row.members for row in pack_rows(rollouts, 1e-9, 4096)] == [(0,), (1,), (2,)]


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_models_that_cannot_share_are_found_out():
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    sliding = Qwen2Config(**shape, num_hidden_layers=2, use_sliding_window=True, sliding_window=3, max_window_layers=0)
    assert attention_cost(model_of(sliding)) == float("inf")
    sliding.sliding_window = 16  # longer than any trial
    assert attention_cost(model_of(sliding)) == float("inf")
    assert attention_cost(model_of(BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2))) == float("inf")  # no position_ids
    assert attention_cost(model_of(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))) < 1
