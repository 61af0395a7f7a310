"""What is tried before anything is trained: chat templates, the engine with this model, the CPU's products."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from mth.config.choices import Dtype, Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models import shapes
from mth.models.chat import CHATML
from mth.models.load import load_policy
from mth.training.setup import assemble
from tests.conftest import make_config
from tests.tasks.rows import write_rows

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
LAST_ONLY = "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n<|im_start|>assistant\n"
ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('only\none turn') }}{% endif %}" + LAST_ONLY


def with_template(folder, template):
    shutil.copytree(TINY_MODEL, folder)
    (folder / "chat_template.jinja").write_text(template)
    return {"path": str(folder), "name": "other", "device": "cpu"}


def assembled(**sections):
    with assemble(make_config(**sections)) as parts:
        return parts


def gsm8k(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(20)])
    return {"name": "gsm8k", "path": str(tmp_path / "rows.jsonl")}


def test_a_template_without_a_system_role_gets_the_prompt_in_the_users_turn(tmp_path, capsys):
    parts = assembled(model=with_template(tmp_path / "m", NO_SYSTEM), task=gsm8k(tmp_path))
    assert (
        capsys.readouterr().out.count("the chat template takes no system prompt; it is written at the start of the user's first turn") == 1
    )
    text = parts.policy.tokenizer.decode(parts.player.renderer.opening(parts.task.train[0]))
    assert text.startswith("<|im_start|>user\nYou are a helpful mathematical AI assistant.")
    assert text.endswith("q0<|im_end|>\n<|im_start|>assistant\n") or "\n\nq" in text


@pytest.mark.parametrize(("template", "said"), [(LAST_ONLY, "drops or moves a message"), (ONE_TURN, r"fails on the roles .* \(only\)")])
def test_a_template_that_has_no_place_for_several_turns_is_refused_before_training(tmp_path, template, said):
    model = with_template(tmp_path / "m", template)
    with pytest.raises(UserError, match=rf"^model\.tokenizer: the chat template {said}") as caught:
        assembled(model=model, task={"name": "alphabet_sort"}, eval={"tasks": ["alphabet_sort"]})
    assert "\n" not in str(caught.value)
    assembled(model=model)  # arithmetic has one turn and no system prompt
    with pytest.raises(UserError, match="the chat template"):
        assembled(model=model, eval={"tasks": ["arithmetic", "alphabet_sort"]})


def test_an_evaluated_task_that_reacts_is_tried_too(tmp_path):
    from tests.own_code import TASK

    (tmp_path / "guess.py").write_text(TASK)
    with pytest.raises(UserError, match="the chat template drops or moves a message of the roles user, assistant, user"):
        assembled(model=with_template(tmp_path / "m", LAST_ONLY), task={"name": "own", "source": f"{tmp_path / 'guess.py'}:build"})


def test_an_architecture_that_the_engine_cannot_serve_is_one_line(tmp_path, monkeypatch):
    sizes = {"vocab_size": 1200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    AutoConfig.for_model("lfm2", **sizes, num_key_value_heads=2, layer_types=["conv", "full_attention"]).save_pretrained(tmp_path)
    model = {"name": "other", "path": str(tmp_path), "tokenizer": str(TINY_MODEL), "init": "random", "device": "cpu"}
    with pytest.raises(UserError, match="lfm2 keeps a state beside or instead of keys and values"):
        assembled(model=model)
    monkeypatch.setattr(shapes, "keeps_state", lambda shape: False)
    with pytest.raises(UserError, match=r"rollout\.engine=hf cannot generate with Lfm2ForCausalLM \(AttributeError: ") as caught:
        assembled(model=model)
    assert "\n" not in str(caught.value)


def test_quantised_weights_are_refused(tmp_path):
    for name, settings in (("a", {"quant_method": "bitsandbytes", "load_in_4bit": True}), ("b", {"quant_method": "fp8"})):
        shutil.copytree(TINY_MODEL, tmp_path / name)
        file = Path(tmp_path / name / "config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
        with pytest.raises(UserError, match=rf"its weights are quantised \({settings['quant_method']}\), which cannot be trained"):
            load_policy(ModelConfig("other", str(tmp_path / name), device="cpu"))


def test_slow_products_in_bfloat16_are_said_with_the_key(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    load_policy(ModelConfig(dtype=Dtype.bfloat16, init=Init.random, device="cpu"))
    assert "warning: model.dtype=bfloat16: this CPU has no instructions for bfloat16" in capsys.readouterr().err
    assembled(model={"device": "cpu"}, rollout={"dtype": "bfloat16"})
    assert "warning: rollout.dtype=bfloat16: this CPU" in capsys.readouterr().err
    load_policy(ModelConfig(device="cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    load_policy(ModelConfig(dtype=Dtype.bfloat16, init=Init.random, device="cpu"))
    assert "bfloat16" not in capsys.readouterr().err
