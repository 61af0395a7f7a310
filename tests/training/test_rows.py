"""Rollouts packed into rows."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mth.foundations.paths import ASSETS
from mth.rollout.player import Rollout
from mth.tasks.base import Episode
from mth.training.batches import collate
from mth.training.logprobs import completion_logprobs
from mth.training.rows import ALONE, Packing, Row, pack_lines, pack_rows
from mth.training.sharing import masked_packing, packing_of
from tests import flash_on_cpu as on_cpu

flash_on_cpu = on_cpu.flash_on_cpu
CPU = torch.device("cpu")
LINES = Packing(lines=True)
CHEAP = Packing(1e-4, 0.25)


def rollout(prompt, parts, name="e"):
    """parts: (tokens, whether the model sampled them) behind the prompt."""
    played = Rollout(Episode(name, ("q",), ("a",)))
    played.append_prompt(prompt)
    for ids, sampled in parts:
        played.ids += ids
        played.loss_mask += [sampled] * len(ids)
        played.logprobs += [-float(i) for i in ids]
    return played


def three_groups(generator):
    """Groups of four and three, of one and two turns, with replies of every length, and a long reply that shares nothing."""
    draw = lambda n: torch.randint(10, 200, (n,), generator=generator).tolist()  # noqa: E731
    first, second = draw(30), draw(17)
    return [
        rollout(draw(9), [(draw(80), True)], "lone"),
        *(rollout(first, [(draw(n), True)]) for n in (5, 1, 9, 9)),
        *(rollout(second, [(draw(n), True), (draw(4), False), (draw(3), True)], "f") for n in (2, 6, 4)),
    ]


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("budget", [1, 60, 100, 4096])
def test_every_token_keeps_its_logprob_and_place(request, small_model, budget, lines):
    if lines:
        request.getfixturevalue("flash_on_cpu")
    rollouts = three_groups(torch.Generator().manual_seed(0))
    packing = packing_of(small_model)
    assert packing.lines is lines and packing.shares
    rows = [row for line in pack_lines(rollouts, budget) for row in line] if lines else pack_rows(rollouts, packing, budget)
    assert sorted(i for row in rows for i in row.members) == list(range(8))
    assert all(row.tokens <= max(budget, len(rollouts[row.members[0]].ids)) for row in rows)
    assert (max(len(row.members) for row in rows) > 1) == (budget > 1)
    seen = {}
    batches = collate(rollouts, [float(i) for i in range(8)], budget, CPU, packing)
    if lines and budget > 1:
        assert all(batch.ids.shape[0] == 1 and batch.ids.shape[1] % 16 == 0 for batch in batches)
        assert sum(batch.ids.numel() for batch in batches) < sum(row.tokens for row in rows) + 16 * len(batches)
    for batch in batches:
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
    assert [len(row.members) for row in pack_rows(short, CHEAP, 4096)] == [8]
    assert [len(row.members) for row in pack_rows(long, CHEAP, 4096)] == [1] * 8
    assert [len(row.members) for row in pack_rows(short, ALONE, 4096)] == [1] * 8


def qwen(name):
    """A model of the paper without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ASSETS / f"qwen2.5-{name}"))


def test_lines_are_full_and_a_group_goes_on_in_the_next():
    """Each line has a prompt once, with as many of its replies as fit."""
    group = [rollout([7] * 10, [([5] * count, True)]) for count in (30, 30, 30, 30, 30)]
    lone = [rollout([8] * 10, [([5] * 20, True)]), rollout([9] * 10, [([5] * 200, True)])]
    lines = pack_lines([*group, *lone], 128)
    assert [[(row.members, row.shared, row.tokens) for row in line] for line in lines] == [
        [((0, 1, 2), 10, 100)],
        [((3, 4), 10, 70), ((5,), 0, 30)],
        [((6,), 0, 210)],  # one rollout at least
    ]
    batches = collate([*group, *lone], [0.0] * 7, 128, CPU, LINES)
    assert [batch.ids.numel() for batch in batches] == [112, 112, 224]
    assert pack_lines([*group[:3]], 111) == [[Row((0, 1), 10, 70)], [Row((2,), 0, 40)]]  # 100 tokens become 112


def test_many_long_replies_take_few_lines():
    """As the recipe of MATH: 32 groups of 8 replies."""
    rollouts = [rollout([10 + group] * 130, [([5] * 600, True)]) for group in range(32) for _ in range(8)]
    assert len(pack_lines(rollouts, 8192)) == 20  # 19.3 without an end; rows of their own: 24
    uneven = [rollout([7] * 130, [([5] * count, True)]) for count in (2048, *[300] * 7)]
    assert pack_lines(uneven, 8192) == [[Row(tuple(range(8)), 130, 130 + 2048 + 2100)]]


# docs/gpu.md: whole updates of eight replies a prompt, shared rows 0.312 and 0.180 s, plain rows 0.438 and 0.339 s; and attention of one layer
# of 1.5B for 24 replies of 600 tokens, four to a row 3.6 ms, in rows of their own 0.95 ms.
@pytest.mark.parametrize(
    ("name", "prompt", "replies", "shared"),
    [("0.5b", 130, range(150, 301, 21), True), ("0.5b", 200, range(30, 61, 4), True), ("1.5b", 130, [600] * 8, False)],
)
def test_a_gpu_shares_rows_where_that_was_measured_to_be_faster(name, prompt, replies, shared):
    rollouts = [rollout([7] * prompt, [([5] * count, True)]) for count in replies]
    rows = pack_rows(rollouts, masked_packing(qwen(name), "cuda"), 16384)
    assert [len(row.members) > 1 for row in rows] == [shared] * len(rows)


def test_the_price_of_attention_on_a_gpu_is_the_measured_one():
    masked, plain = 6 * 2530**2, 24 * 730**2
    packing = masked_packing(qwen("1.5b"), "cuda")
    assert masked / (packing.causal * plain) == pytest.approx(3.6 / 0.95, rel=0.05)
    token_us, layers = 16.5, 28
    measured = 3600 / masked / (token_us / layers)
    assert packing.pair == pytest.approx(measured, rel=0.05)


def test_equal_prompts_of_other_groups_are_not_needed_to_share():
    rollouts = [rollout([1, 2, 3], [([4], True)]), rollout([1, 2, 5], [([4], True)]), rollout([1, 2, 3], [([4], True)])]
    assert [row.members for row in pack_rows(rollouts, Packing(1e-9), 4096)] == [(0,), (1,), (2,)]
