"""The embedded model, random weights in real shapes, and models that are refused."""

import dataclasses
import json
import shutil

import pytest
import torch

from mth.config.choices import Dtype, Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models.load import load_policy


def test_embedded_model_is_small_and_fits_vllm():
    policy = load_policy(ModelConfig())
    config = policy.model.config
    assert sum(p.numel() for p in policy.model.parameters()) <= 3_000_000
    assert config.hidden_size // config.num_attention_heads in (32, 64)
    assert (TINY_MODEL / "model.safetensors").stat().st_size < 8 * 2**20
    assert config.model_type == "qwen2"
    made = json.loads((TINY_MODEL / "pretraining.json").read_text())
    assert made["command"] == "python -m mth.pretrain"


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
        load_policy(ModelConfig(name="nothing"))
    shutil.copytree(TINY_MODEL, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load_policy(ModelConfig(path=str(tmp_path / "m")))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"model\.device=cuda:1, but no GPU"):
        load_policy(ModelConfig(device="cuda:1"))
