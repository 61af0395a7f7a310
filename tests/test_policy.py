"""Models and tokenizers: the embedded one, random weights in real shapes, and what is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GraniteConfig

from mth.config import Dtype, Init, ModelConfig
from mth.errors import UserError
from mth.paths import TINY_MODEL
from mth.policy import architecture, check_head, load_policy, load_tokenizer
from mth.tasks.alphabet_sort import embedded_pools


def test_embedded_model_is_small_and_fits_vllm():
    policy = load_policy(ModelConfig())
    config = policy.model.config
    assert sum(p.numel() for p in policy.model.parameters()) <= 3_000_000
    assert config.hidden_size // config.num_attention_heads in (32, 64)
    assert (TINY_MODEL / "model.safetensors").stat().st_size < 8 * 2**20
    assert config.model_type == "qwen2"
    made = json.loads((TINY_MODEL / "pretraining.json").read_text())
    assert made["command"] == "python -m mth.pretrain"


def test_embedded_tokenizer_keeps_the_words_it_was_trained_with(tokenizer):
    for names in embedded_pools():
        assert all(len(tokenizer(name)["input_ids"]) == 1 for name in names)
    text = "Sort by LAST name: AdaLovelace, JamesSmith\n<alphabetical_sorted>\n12 + 3 = 15 \\boxed{15} // new name!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer(", JamesSmith")["input_ids"]) == [",Ġ", "James", "Smith"]


def test_random_weights_in_a_known_shape_need_no_download(tokenizer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = ModelConfig(name="tiny", init=Init.random, dtype=Dtype.bfloat16)
    first, second = (load_policy(config).model for _ in range(2))
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    other = load_policy(dataclasses.replace(config, init_seed=1)).model
    assert not torch.equal(next(other.parameters()), next(first.parameters()))


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY_MODEL / name, tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer in .*: give model\.tokenizer"):
        load_policy(ModelConfig(path=str(tmp_path)))
    assert load_policy(ModelConfig(path=str(tmp_path), tokenizer=str(TINY_MODEL))).model.config.model_type == "qwen2"


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    shutil.copytree(TINY_MODEL, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(UserError, match="do not belong together"):
        load_policy(ModelConfig(path=str(tmp_path / "m"), init=Init.random))


def test_unknown_names_and_broken_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="not shipped with mth"):
        load_tokenizer(ModelConfig(name="nothing"))
    shutil.copytree(TINY_MODEL, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load_policy(ModelConfig(path=str(tmp_path / "m")))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"model\.device=cuda:1, but no GPU"):
        load_policy(ModelConfig(device="cuda:1"))


def test_logits_that_are_changed_behind_the_head_are_refused():
    shape = GraniteConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, logits_scaling=4.0
    )
    with pytest.raises(UserError, match="scales or caps its logits"):
        check_head(AutoModelForCausalLM.from_config(shape).eval())


def test_dropout_is_off(tmp_path):
    shape = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)
    assert shape.resid_pdrop == 0.1
    shape.save_pretrained(tmp_path)
    loaded = architecture(ModelConfig(name="other", path=str(tmp_path)))
    assert (loaded.resid_pdrop, loaded.embd_pdrop, loaded.attn_pdrop) == (0, 0, 0)


FAULTS = """
import resource, torch
from mth.config import ModelConfig
from mth.policy import load_policy
load_policy(ModelConfig(device="cpu"))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):  # a freed block between two in use has no room to align the same tensor again: then a second one serves in turns with it
    faults()
print(faults())
"""


@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_for_the_next_step_unless_the_environment_says_otherwise(environment, kept):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    made = subprocess.run([sys.executable, "-c", FAULTS], env=inherited | environment, capture_output=True, text=True, check=True)
    assert (int(made.stdout) < 1000) == kept
