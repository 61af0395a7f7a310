"""Many architectures: mth's log-probabilities equal those of a plain forward pass, or the model is refused in one line."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models.head import check_lm_head
from mth.models.load import load_policy
from mth.models.shapes import usable_context

SIZES = {"vocab_size": 1200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}
ROTARY = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
OTHER_NAMES = {"vocab_size": 1200, "n_embd": 64, "n_layer": 2, "n_head": 4}
OPT = {"vocab_size": 1200, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 64}
REFUSED = [
    ("gemma2", GROUPED, "final_logit_softcapping=30.0"),
    ("gemma3_text", GROUPED | {"final_logit_softcapping": 20.0}, "final_logit_softcapping=20.0"),
    ("cohere", GROUPED, "logit_scale=0.0625"),
    ("cohere2", GROUPED, "logit_scale=0.0625"),
    ("granite", GROUPED | {"logits_scaling": 4.0}, "logits_scaling=4.0"),
    ("bert", SIZES | {"is_decoder": True}, "or changes its input"),
    ("bloom", {"vocab_size": 1200, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "states no context length"),
    ("gemma3", {}, "has more parts than a language model"),
    ("t5", {}, "is no causal language model"),
]


def load(folder, family, sizes):
    AutoConfig.for_model(family, **sizes).save_pretrained(folder)
    return load_policy(ModelConfig(name="other", path=str(folder), tokenizer=str(TINY_MODEL), init=Init.random, device="cpu"))


@pytest.mark.parametrize(("family", "sizes", "message"), REFUSED, ids=[f"{family}-{i}" for i, (family, _, _) in enumerate(REFUSED)])
def test_models_that_mth_cannot_train_are_refused_in_one_line(family, sizes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        usable_context(load(tmp_path, family, sizes).model.config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("gemma2", GROUPED), ("cohere", GROUPED), ("granite", GROUPED | {"logits_scaling": 0.95}), ("minicpm3", SIZES)],
    ids=["capped", "scaled", "divided", "smaller input"],
)
def test_a_forward_pass_shows_what_no_key_tells(family, sizes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    if family == "gemma2":  # tanh(x / 30) is x / 30 to one percent here
        assert model(torch.arange(3)[None]).logits.abs().max() < 5
    with pytest.raises(UserError, match="scales or caps its logits after the LM head"):
        check_lm_head(model)


def test_logits_that_overflow_have_their_own_message(small_model):
    small_model.base_model.norm.weight.data.fill_(3e38)
    with pytest.raises(UserError, match="the logits of Qwen2ForCausalLM are not finite"):
        check_lm_head(small_model)
