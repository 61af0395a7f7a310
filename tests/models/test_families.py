"""Families of models with tiny random weights: what mth samples and trains equals a plain forward pass. `docs/models.md` lists them."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from mth.config.choices import Init, WeightGradient
from mth.config.schema import ModelConfig, OptimizerConfig, RolloutConfig
from mth.foundations.errors import UserError
from mth.foundations.paths import TINY_MODEL
from mth.models.load import load_policy
from mth.models.shapes import usable_context
from mth.rollout.engine import Request
from mth.rollout.hf.engine import HfEngine
from mth.rollout.player import Rollout
from mth.tasks.base import Episode
from mth.tickets.route import choose_sampled
from mth.tickets.sampled_gradients import sampled_gradients
from mth.training.batches import collate
from mth.training.logprobs import completion_backward, completion_logprobs
from mth.training.rows import ALONE, Packing
from mth.training.sharing import packing_of
from tests import flash_on_cpu as on_cpu
from tests.tickets.models import ticket_of

flash_on_cpu = on_cpu.flash_on_cpu

SIZES = {"vocab_size": 1200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 256}
GROUPED = SIZES | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
ROTARY = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
OTHER_NAMES = {"vocab_size": 1200, "n_embd": 32, "n_layer": 2, "n_head": 4}
OPT = {"vocab_size": 1200, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}

ACCEPTED = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS | {"final_logit_softcapping": None},
    "gemma3_text": HEADS | {"sliding_window": 8},
    "mistral": GROUPED | {"sliding_window": 8},
    "ministral": HEADS,
    "phi": SIZES,
    "phi3": GROUPED | {"pad_token_id": 0, "original_max_position_embeddings": 40, "rope_scaling": {"type": "longrope", **ROTARY}},
    "gpt2": OTHER_NAMES,
    "gpt_neox": SIZES,
    "opt": OPT,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED,
    "granite": GROUPED | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "smollm3": GROUPED | {"pad_token_id": 0},
    "cohere": GROUPED | {"logit_scale": 1.0},
    "falcon": {"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "glm4": HEADS | {"pad_token_id": 0},
    "ernie4_5": HEADS,
    "exaone4": GROUPED,
    "seed_oss": HEADS,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen2_moe": GROUPED | EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": HEADS | EXPERTS | {"moe_intermediate_size": 16},
    "olmoe": GROUPED | EXPERTS,
    "granitemoe": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 1.0},
    "gpt_oss": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": GROUPED | LATENT | ROUTED | {"first_k_dense_replace": 1},
}
MASKED = ("stablelm", "falcon", "deepseek_v3")  # attention of its own, or values unlike keys: rows need a mask
STATE = "keeps a state beside or instead of keys and values"
REFUSED = {
    "mamba": ({"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, STATE),
    "mamba2": ({"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1}, STATE),
    "jamba": (GROUPED | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}, STATE),
    "falcon_h1": (GROUPED | {"mamba_d_state": 4, "mamba_n_heads": 8, "mamba_d_ssm": 32, "mamba_d_head": 4}, STATE),
    "recurrent_gemma": (HEADS, STATE),
    "qwen3_next": (HEADS | EXPERTS | {"layer_types": ["linear_attention", "full_attention"]}, STATE),
    "lfm2": (GROUPED | {"layer_types": ["conv", "full_attention"]}, STATE),
    "rwkv": ({"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 2}, STATE),
    "bloom": ({"vocab_size": 1200, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "states no context length"),
    "mpt": ({"vocab_size": 1200, "d_model": 32, "n_layers": 2, "n_heads": 4}, "states no context length"),
    "minicpm3": (SIZES, "scales or caps its logits after the LM head"),
}
SHARED = tuple(range(3, 23))  # what some prompts begin with
PROMPTS = [(*SHARED, 40, 41), (*SHARED, 50), (*SHARED, 60, 61, 62), (7, 8, 9)]


def policy_of(folder, family, sizes):
    AutoConfig.for_model(family, **sizes).save_pretrained(folder)
    return load_policy(ModelConfig(name="other", path=str(folder), tokenizer=str(TINY_MODEL), init=Init.random, device="cpu"))


def plain(model, ids, start):
    """Log-probabilities of one sequence from position `start` on, of a forward pass over that sequence alone."""
    logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return torch.stack([logprobs[i - 1, ids[i]] for i in range(start, len(ids))])


def rolled_out(policy, ticket):
    """Two replies to every prompt. The engine shares the prompts' beginning."""
    engine = HfEngine(policy, ticket, RolloutConfig())
    prompts = [list(prompt) for prompt in PROMPTS for _ in range(2)]
    rollouts = []
    for prompt, reply in zip(prompts, engine.generate([Request(p, 5 + i) for i, p in enumerate(prompts)], 10, 1.0), strict=True):
        rollout = Rollout(Episode("e", ("q",), ("a",)))
        rollout.append_prompt(prompt)
        rollout.append_completion(reply, "")
        rollouts.append(rollout)
    return rollouts


@pytest.mark.parametrize("family", ACCEPTED)
def test_what_is_sampled_and_trained_equals_a_plain_forward_pass(request, family, tmp_path):
    policy = policy_of(tmp_path, family, ACCEPTED[family])
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(2)  # away from a uniform distribution
    ticket = ticket_of(policy.model, 90)
    rollouts = rolled_out(policy, ticket)
    with torch.no_grad():
        for rollout in rollouts:
            start, ids = rollout.loss_mask.index(True), rollout.ids
            expected = plain(policy.model, ids, start)
            trained, _ = completion_logprobs(policy.model, torch.tensor([ids]), torch.tensor([rollout.loss_mask]), 1.0)
            torch.testing.assert_close(trained, expected, rtol=0, atol=1e-4)
            torch.testing.assert_close(torch.tensor(rollout.logprobs[start:]), expected, rtol=0, atol=1e-4)

    ticket.sampled, _ = choose_sampled(policy.model, ticket, OptimizerConfig(weight_gradient=WeightGradient.sampled))
    shares = packing_of(policy.model).shares  # whether several replies to a prompt may be in one row
    request.getfixturevalue("flash_on_cpu")
    lines = packing_of(policy.model)
    assert lines.lines == (shares and family not in MASKED)
    gradients = []
    for packing in (Packing(0.0) if shares else ALONE, lines):
        batches = collate(rollouts, [1.0] * len(rollouts), 400, torch.device("cpu"), packing)
        assert any(batch.layout is not None for batch in batches) is shares
        ticket.zero_gradient()
        with sampled_gradients(policy.model, ticket):
            for batch in batches:
                completion_backward(policy.model, batch.ids, batch.loss_mask, 1.0, lambda logprobs, *_: logprobs.sum(), batch.layout)
        ticket.finish_gradient()
        gradients.append(ticket.values.grad.clone())
    indices, parameters = ticket.indices, ticket.parameters
    ticket.detach()
    for rollout in rollouts:
        plain(policy.model, rollout.ids, rollout.loss_mask.index(True)).sum().backward()
    parts = []
    for name, parameter in parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts.append(gradient.flatten() if indices[name] is None else gradient.flatten()[indices[name].long()])
    expected = torch.cat(parts)
    assert expected.norm() > 0
    for got in gradients:
        assert (got - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_be_trusted_are_refused_in_one_line(family, tmp_path):
    sizes, message = REFUSED[family]
    with pytest.raises(UserError, match=message) as caught:
        usable_context(policy_of(tmp_path, family, sizes).model.config)
    assert "\n" not in str(caught.value)


def test_the_page_lists_what_is_tried():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    tried, refused = (set(re.findall(r"^\| `(\w+)`", part, re.MULTILINE)) for part in page.replace("`model_type`", "").split("## Refused"))
    assert tried == set(ACCEPTED)
    assert refused == set(REFUSED)
