"""Models and helpers of the tests of sampled gradients."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from mth.config.choices import WeightGradient
from mth.config.schema import OptimizerConfig
from mth.tickets.draw import model_parameters
from mth.tickets.masks import sample_mask
from mth.tickets.route import choose_sampled
from mth.tickets.sampled_gradients import sampled_gradients
from mth.tickets.ticket import Ticket

SAMPLED = OptimizerConfig(weight_gradient=WeightGradient.sampled)


def ticket_of(model, percent, seed=0, dense_norm=False):
    parameters = model_parameters(model)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    return Ticket(parameters, sample_mask(shapes, "random", percent, seed), dense_norm)


def backward(model, seeds=(1,), rows=3, tokens=20):
    for seed in seeds:
        ids = torch.randint(model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids, labels=ids).loss.backward()


def flat_gradient(model, ticket, config, **batch):
    ticket.sampled, lines = choose_sampled(model, ticket, config)
    ticket.zero_gradient()
    with sampled_gradients(model, ticket):
        backward(model, **batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    return ticket.values.grad.clone(), lines


def assert_same_by_tensor(ticket, got, expected, tolerance):
    checked = 0
    for name, place in ticket.slices.items():
        if place.stop > place.start:
            error = (got[place] - expected[place]).norm() / expected[place].norm()
            assert error < tolerance, f"{name}: relative error {error:.2g}"
            checked += 1
    assert checked


def small(kind, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(vocab_size=97, max_position_embeddings=64, **settings)).eval()


OTHERS = {
    "llama, untied": lambda: small(LlamaConfig, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False, pad_token_id=5),
    "gpt2, whose layers are not nn.Linear": lambda: small(GPT2Config, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "opt, with learned positions": lambda: small(OPTConfig, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, dropout=0.0),
}  # fmt: skip
