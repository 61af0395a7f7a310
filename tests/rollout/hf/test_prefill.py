"""Prefill: which prefix is shared, and how prompts are batched."""

from mth.rollout.hf.prefill import prefill_batches, shared_prefix_length


def test_shared_prefix_length_computes_the_fewest_tokens():
    group = [(1, 2, 3, 4, 5, 6, 7, 8, n, n) for n in range(4)]
    assert shared_prefix_length(group) == 8
    other = [(1, 9, 9, 9, 9, 9, 9, 9, n, n) for n in range(4)]
    assert shared_prefix_length(group + other) == 8  # two prefixes of eight tokens, not one of one
    assert shared_prefix_length([(1, 2, 3), (4, 5, 6)]) == shared_prefix_length([(1, 2, 3)]) == shared_prefix_length([(5,), (5, 6)]) == 0


def test_prefill_batches_hold_at_most_the_limit_and_every_prompt_once():
    prompts = [(7,) * n for n in (3, 3, 4, 6, 9, 30)]
    batches = list(prefill_batches(prompts, 1, 12))
    assert [p for batch in batches for p in batch] == prompts
    assert [len(batch) for batch in batches] == [3, 1, 1, 1]
    assert list(prefill_batches(prompts, 1, None)) == [prompts]
