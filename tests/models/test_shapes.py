"""Shapes without weights."""

import pytest
from transformers import GPT2Config, LlamaConfig, Phi3Config, Qwen2Config

from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.models.shapes import architecture, head_size, usable_context


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


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
LENGTHS = {"max_position_embeddings": 512, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("shape", "context"),
    [
        (Qwen2Config(max_position_embeddings=256), 256),
        (GPT2Config(n_positions=128), 128),
        (Phi3Config(hidden_size=64, num_attention_heads=2, pad_token_id=0, rope_scaling=LONGROPE, **LENGTHS), 64),
        (LlamaConfig(max_position_embeddings=256, rope_scaling={"rope_type": "dynamic", "factor": 4.0}), 256),
        (
            LlamaConfig(
                max_position_embeddings=512,
                rope_scaling={"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 128},
            ),
            128,
        ),
        (
            LlamaConfig(
                max_position_embeddings=512,
                rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            ),
            512,
        ),
    ],
    ids=["qwen2", "gpt2", "longrope", "dynamic", "dynamic with its length", "yarn"],
)
def test_usable_context_ends_where_a_longer_sequence_would_change_earlier_keys(shape, context, tmp_path):
    shape.save_pretrained(tmp_path)
    assert usable_context(architecture(ModelConfig(name="other", path=str(tmp_path)))) == context


def test_usable_context_of_each_type_of_layer():
    shape = Qwen2Config(max_position_embeddings=512)
    default = {"rope_type": "default", "rope_theta": 1e4}
    shape.rope_parameters = {
        "full_attention": default | {"rope_type": "longrope", "original_max_position_embeddings": 64},
        "sliding_attention": default,
    }
    assert usable_context(shape) == 64


def test_without_a_hub_the_way_to_plan_is_named(tmp_path):
    """A path that does not exist is what a hub that cannot be reached is: no configuration. Shapes of the paper's models are shipped."""
    config = ModelConfig(name="qwen2.5-1.5b", path=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no model configuration found .*; without a hub, a plan can take model.init=random$"):
        architecture(config)
    config.init = Init.random
    assert architecture(config).hidden_size == 1536
    with pytest.raises(UserError, match=r"no model configuration found [^;]*$"):
        architecture(ModelConfig(name="other", path=str(tmp_path / "none")))
