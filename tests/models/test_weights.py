"""Files that do not hold exactly the model's weights are refused in one line, before anything is trained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models.load import load_policy

EMBEDDING, HEAD, UP = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"


def folder(path, edit, tied=True):
    """A small Llama whose file of weights was changed by `edit`."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 1200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, tie_word_embeddings=tied)).save_pretrained(path)
    file = path / "model.safetensors"
    save_file(edit(load_file(file)), file, {"format": "pt"})
    return ModelConfig(name="other", path=str(path), tokenizer=str(TINY_MODEL), device="cpu")


def renamed(prefix):
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def without(text):
    return lambda weights: {name: weight for name, weight in weights.items() if text not in name}


def replaced(name, change):
    return lambda weights: weights | {name: change(weights[name])}


@pytest.mark.parametrize(
    ("edit", "tied", "message"),
    [
        (
            renamed("_orig_mod."),
            True,
            r"missing: .*model\.embed_tokens.* and \d+ more; unexpected: _orig_mod\..*remove the prefix _orig_mod\. ",
        ),
        (renamed("base_model.model."), True, r"remove the prefix base_model\.model\. from the keys"),
        (without("layers.1."), True, r"\(missing: model\.layers\.1\.input_layernorm\.weight, .* and 6 more\); give the folder"),
        (without("model.norm"), True, r"\(missing: model\.norm\.weight\)"),
        (without("lm_head"), False, r"\(missing: lm_head\.weight\)"),
        (without("embed_tokens"), True, r"missing: .*model\.embed_tokens\.weight"),
        (replaced(UP, lambda weight: weight[:-1].clone()), True, r"of another size: .*up_proj\.weight \[47, 32\] instead of \[48, 32\]"),
        (lambda w: w | {"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}, True, r"unexpected: .*layers\.1\.self_attn\.q_proj\.bias"),
        (lambda w: w | {UP.replace("1", "2"): w[UP].clone()}, True, r"unexpected: model\.layers\.2"),
        (lambda w: w | {HEAD: w[EMBEDDING] + 1}, True, r"ties lm_head\.weight to another weight.*tie_word_embeddings to false"),
        (replaced(UP, lambda weight: weight * float("nan")), True, r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinite values"),
        (
            replaced(EMBEDDING, lambda weight: weight.index_fill(0, torch.tensor([5]), -torch.inf)),
            True,
            r"embed_tokens\.weight holds NaN or inf",
        ),
    ],
    ids=["compiled", "peft", "layer", "norm", "head", "embedding", "size", "bias", "more layers", "tied twice", "nan", "infinite"],
)
def test_other_weights_are_refused(edit, tied, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        load_policy(folder(tmp_path, edit, tied))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"model.path={tmp_path}: ")


@pytest.mark.parametrize(
    ("edit", "tied"),
    [
        (lambda weights: weights, True),
        (lambda weights: weights, False),
        (lambda weights: weights | {HEAD: weights[EMBEDDING].clone()}, True),  # the tied weight, saved twice
        (lambda weights: {name.replace(EMBEDDING, HEAD): weight for name, weight in weights.items()}, True),  # saved by its other name
        (lambda weights: {name.removeprefix("model."): weight for name, weight in weights.items()}, True),  # saved without its head
        (lambda weights: weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, True),  # a buffer of old files
    ],
    ids=["tied", "untied", "tied twice", "tied to the head", "decoder", "old buffer"],
)
def test_the_same_weights_in_other_forms_are_loaded(edit, tied, tmp_path):
    model = load_policy(folder(tmp_path, edit, tied)).model
    plain = load_policy(folder(tmp_path / "plain", lambda weights: weights, tied)).model
    got, expected = dict(model.named_parameters()), dict(plain.named_parameters())
    assert got.keys() == expected.keys()
    assert (HEAD in got) != tied
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_a_file_without_its_index_is_refused_in_one_line(tmp_path):
    config = folder(tmp_path, lambda weights: weights)
    index = {"metadata": {}, "weight_map": {EMBEDDING: "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load_policy(config)
