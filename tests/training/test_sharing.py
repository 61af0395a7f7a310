"""Which models share rows, and how."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, GPT2Config, MptConfig, Qwen2Config

from mth.training.lines import Line
from mth.training.logprobs import Layout
from mth.training.rows import ALONE, FilledRows
from mth.training.sharing import masked_packing, packing_of
from tests import flash_on_cpu as on_cpu
from tests.pretend_cuda import move, pretended_gpu

flash_on_cpu = on_cpu.flash_on_cpu


def model_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def test_models_that_cannot_share_are_found_out(capsys):
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    sliding = Qwen2Config(**shape, num_hidden_layers=2, use_sliding_window=True, sliding_window=3, max_window_layers=0)
    assert packing_of(model_of(sliding)) == ALONE
    sliding.sliding_window = 64  # longer than any trial
    assert packing_of(model_of(sliding)) == ALONE
    assert "sliding window" in capsys.readouterr().out
    bloom = BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=2)  # no position_ids
    alibi = FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True)
    mpt = MptConfig(vocab_size=50, d_model=32, n_layers=1, n_heads=2)  # ALiBi; takes both arguments and ignores the positions
    eager = Qwen2Config(**shape, num_hidden_layers=1, attn_implementation="eager")
    for config in (bloom, alibi, mpt, eager):
        assert packing_of(model_of(config)) == ALONE
        said = capsys.readouterr().out
        assert said.startswith("warning: model.path: ") and said.count("\n") == 1
    assert packing_of(model_of(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))).pair < 1
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
    assert packing_of(realistic(dtype, rounding)).shares
    assert not capsys.readouterr().out


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
@pytest.mark.parametrize(("dtype", "rounding"), PRECISIONS)
def test_models_that_ignore_a_part_of_the_layout_do_not_share(dtype, rounding, ignored, capsys):
    assert packing_of(ignore(realistic(dtype, rounding), ignored)) == ALONE
    assert "computes other hidden states for a shared row" in capsys.readouterr().out


@pytest.mark.parametrize("member", [2, 3])
@pytest.mark.parametrize(("dtype", "rounding"), PRECISIONS)
def test_the_trial_judges_every_rollout_of_the_row(dtype, rounding, member, monkeypatch):
    """A row is wrong if one of its rollouts sees its neighbour."""
    layout = FilledRows.masked

    def leak(rows, device):
        right = layout(rows, device)
        sees = (rows.span[:, None, :, None] == member) & (rows.span[:, None, None, :] == member - 1)
        return Layout(right.positions, right.previous, right.attention | sees)

    monkeypatch.setattr(FilledRows, "masked", leak)
    assert packing_of(realistic(dtype, rounding)) == ALONE


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize(("dtype", "rounding"), PRECISIONS)
def test_lines_are_tried_on_the_model(dtype, rounding, monkeypatch, capsys):
    """Where a line's hidden states are wrong, a mask is used."""
    assert packing_of(realistic(dtype, rounding)).lines
    assert packing_of(ignore(realistic(dtype, rounding), "position_ids")) == ALONE
    capsys.readouterr()
    model = realistic(dtype, rounding)
    forward = model.model.forward
    model.model.forward = lambda *args, **arguments: forward(*args, **(arguments | {"line": None}))  # as a model that passes nothing on
    assert packing_of(model) == masked_packing(model, "cpu")
    line = Line.of
    leak = staticmethod(lambda prompts, replies, alone, device: line(prompts, [[sum(group)] for group in replies], alone, device))
    monkeypatch.setattr(Line, "of", leak)
    assert packing_of(realistic(dtype, rounding)) == masked_packing(model, "cpu")  # replies see each other


def test_a_gpu_without_flash_attention_uses_a_mask_and_says_so(capsys):
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    for dtype, reason in ((torch.float32, "bfloat16"), (torch.bfloat16, "_flash_attention_forward")):
        model = model_of(Qwen2Config(**shape, num_hidden_layers=1), dtype)
        with pretended_gpu():
            assert packing_of(move(model)) == masked_packing(model, "cuda")
            said = capsys.readouterr().out
            assert said.startswith("rows that share a prompt need a mask, which is slower: ") and reason in said and said.count("\n") == 1
