"""What is decided before vLLM is imported: the folder of its model, models that it cannot follow, and what it leaves to the trainer."""

import sys
from types import SimpleNamespace

import pytest
import torch

from mth.foundations.errors import UserError
from mth.foundations.files import read_json
from mth.rollout.vllm import core
from mth.rollout.vllm.core import EngineSpec, LocalCore, model_folder


def test_engines_of_one_model_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = model_folder({"model_type": "qwen2", "hidden_size": 64})
    assert model_folder({"hidden_size": 64, "model_type": "qwen2"}) == first and first.is_relative_to(tmp_path)
    assert read_json(first / "config.json") == {"model_type": "qwen2", "hidden_size": 64}
    assert model_folder({"model_type": "qwen2", "hidden_size": 128}) != first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"could not be written .* set XDG_CACHE_HOME to another folder"):
        model_folder({})


def test_a_model_with_absorbed_weights_is_refused_by_name():
    spec = EngineSpec({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "bfloat16", 64, 1, 0.4, None)
    with pytest.raises(UserError, match=r"deepseek_v3 has latent attention \(kv_lora_rank=512\), .*; use rollout=hf"):
        LocalCore().open(spec)


@pytest.mark.parametrize("mode", [(True, False), (True, True), (False, False)])
def test_only_vllm_itself_may_compute_in_no_fixed_order(tmp_path, monkeypatch, mode):
    def now():
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    class Llm:
        def __init__(self, **options):
            within.append(now())

        def generate(self, *arguments, **options):
            within.append(now())
            return []

    within, before = [], now()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(core, "prepare_vllm", lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Llm, SamplingParams=dict))
    monkeypatch.setitem(sys.modules, "mth.rollout.vllm.transfer", SimpleNamespace(BACKEND="none"))
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
    try:
        engine = LocalCore()
        engine.open(EngineSpec({"model_type": "qwen2"}, "bfloat16", 64, 1, 0.4, None))
        engine.generate([], {}, [])
        after = now()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert after == mode and within == [(mode[0], True)] * 2
