"""Rollouts packed into rows."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, FalconConfig, GPT2Config, MptConfig, Qwen2Config

from mth.foundations.paths import ASSETS
from mth.rollout.player import Rollout
from mth.tasks.base import Episode
from mth.training import batches
from mth.training.batches import CAUSAL_SHARE, attention_cost, collate, pack_rows, pair_cost
from mth.training.logprobs import Layout, completion_logprobs

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


def qwen(name):
    """A model of the paper without its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ASSETS / f"qwen2.5-{name}"))


# docs/gpu.md: whole updates of eight replies a prompt, shared rows 0.312 and 0.180 s, plain rows 0.438 and 0.339 s; and attention of one layer
# of 1.5B for 24 replies of 600 tokens, four to a row 3.6 ms, in rows of their own 0.95 ms.
@pytest.mark.parametrize(
    ("name", "prompt", "replies", "shared"),
    [("0.5b", 130, range(150, 301, 21), True), ("0.5b", 200, range(30, 61, 4), True), ("1.5b", 130, [600] * 8, False)],
)
def test_a_gpu_shares_rows_where_that_was_measured_to_be_faster(name, prompt, replies, shared):
    rollouts = [rollout([7] * prompt, [([5] * count, True)]) for count in replies]
    rows = pack_rows(rollouts, pair_cost(qwen(name), "cuda"), 16384, CAUSAL_SHARE["cuda"])
    assert [len(row.members) > 1 for row in rows] == [shared] * len(rows)


def test_the_price_of_attention_on_a_gpu_is_the_measured_one():
    masked, plain = 6 * 2530**2, 24 * 730**2
    assert masked / (CAUSAL_SHARE["cuda"] * plain) == pytest.approx(3.6 / 0.95, rel=0.05)
    token_us, layers = 16.5, 28
    measured = 3600 / masked / (token_us / layers)
    assert pair_cost(qwen("1.5b"), "cuda") == pytest.approx(measured, rel=0.05)


def test_the_device_of_a_batch_chooses_its_price(monkeypatch):
    asked = []
    monkeypatch.setattr(batches, "pack_rows", lambda *arguments: asked.append(arguments[-1]) or [batches.Row((0,), 0, 4)])
    for device in ("cpu", "cuda"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "to", lambda tensor, _: tensor)
            collate([rollout([1, 2, 3], [([4], True)])], [0.0], 64, torch.device(device), 1e-4)
    assert asked == [0.25, 0.8]


def test_equal_prompts_of_other_groups_are_not_needed_to_share():
    rollouts = [rollout([1, 2, 3], [([4], True)]), rollout([1, 2, 5], [([4], True)]), rollout([1, 2, 3], [([4], True)])]
    assert [row.members for row in pack_rows(rollouts, 1e-9, 4096)] == [(0,), (1,), (2,)]


def model_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def test_models_that_cannot_share_are_found_out(capsys):
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    sliding = Qwen2Config(**shape, num_hidden_layers=2, use_sliding_window=True, sliding_window=3, max_window_layers=0)
    assert attention_cost(model_of(sliding)) == float("inf")
    sliding.sliding_window = 64  # longer than any trial
    assert attention_cost(model_of(sliding)) == float("inf")
    assert "sliding window" in capsys.readouterr().out
    bloom = BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2)  # no position_ids
    alibi = FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True)
    mpt = MptConfig(vocab_size=50, d_model=32, n_layers=1, n_heads=2)  # ALiBi; takes both arguments and ignores the positions
    eager = Qwen2Config(**shape, num_hidden_layers=1, attn_implementation="eager")
    for config in (bloom, alibi, mpt, eager):
        assert attention_cost(model_of(config)) == float("inf")
        said = capsys.readouterr().out
        assert said.startswith("warning: model.path: ") and said.count("\n") == 1
    assert attention_cost(model_of(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))) < 1
    assert not capsys.readouterr().out


def realistic(dtype, rounding):
    """A model whose states differ by a relative `rounding` per layer from one call to the next, as those of bf16 kernels do on a GPU.

    Its log-probabilities reach -40 nats, as a trained model's do on tokens that do not belong together.
    """
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
    model = model_of(Qwen2Config(vocab_size=500, initializer_range=0.15, tie_word_embeddings=False, **shape), dtype)
    with torch.no_grad():
        model.lm_head.weight *= 4
    noise = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, inputs, out: out * (1 + rounding * torch.randn(out.shape, generator=noise)).to(out.dtype))
    return model


def ignore(model, name):
    """Make the model use its own mask, or its own positions, whatever it is given."""
    forward = model.model.forward
    model.model.forward = lambda *args, **arguments: forward(*args, **(arguments | {name: None}))
    return model


PRECISIONS = [(torch.float32, 1e-7), (torch.bfloat16, 2**-8)]


@pytest.mark.parametrize(("dtype", "rounding"), PRECISIONS)
def test_rounding_does_not_turn_sharing_off(dtype, rounding, capsys):
    assert attention_cost(realistic(dtype, rounding)) < 1
    assert not capsys.readouterr().out


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
@pytest.mark.parametrize(("dtype", "rounding"), PRECISIONS)
def test_models_that_ignore_a_part_of_the_layout_do_not_share(dtype, rounding, ignored, capsys):
    assert attention_cost(ignore(realistic(dtype, rounding), ignored)) == float("inf")
    assert "computes other hidden states for a shared row" in capsys.readouterr().out


@pytest.mark.parametrize("member", [2, 3])
@pytest.mark.parametrize(("dtype", "rounding"), PRECISIONS)
def test_the_trial_judges_every_rollout_of_the_row(dtype, rounding, member, monkeypatch):
    """A row is wrong if one of its rollouts sees its neighbour."""
    layout = batches._PackedRows.layout

    def leak(rows, device):
        right = layout(rows, device)
        segment = rows.segment
        sees = (segment[:, None, :, None] == member) & (segment[:, None, None, :] == member - 1)
        return Layout(right.positions, right.previous, right.attention | sees)

    monkeypatch.setattr(batches._PackedRows, "layout", leak)
    assert attention_cost(realistic(dtype, rounding)) == float("inf")
