"""Shapes without weights."""

import pytest
from transformers import GPT2Config, Qwen2Config

from mth.config.schema import ModelConfig
from mth.models.shapes import architecture, head_size


def test_dropout_is_off(tmp_path):
    shape = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)
    assert shape.resid_pdrop == 0.1
    shape.save_pretrained(tmp_path)
    loaded = architecture(ModelConfig(name="other", path=str(tmp_path)))
    assert (loaded.resid_pdrop, loaded.embd_pdrop, loaded.attn_pdrop) == (0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (Qwen2Config(hidden_size=64, num_attention_heads=4), 16),
        (Qwen2Config(hidden_size=64, num_attention_heads=4, head_dim=32), 32),
        (GPT2Config(n_embd=48, n_head=2), 24),
    ],
)
def test_head_size(shape, size):
    assert head_size(shape) == size
    assert shape.model_type == "gpt2" or head_size(shape.to_dict()) == size  # GPT-2's config.json has other names
