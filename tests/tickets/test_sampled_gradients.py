"""Gradients sampled at the active entries against dense ones."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from mth.config.choices import WeightGradient
from mth.config.schema import OptimizerConfig
from mth.foundations.paths import ASSETS
from mth.tickets.route import choose_sampled
from mth.tickets.sampled_gradients import padded_matmul, sampled_gradients
from tests.tickets.models import OTHERS, SAMPLED, assert_same_by_tensor, flat_gradient, ticket_of


@pytest.mark.parametrize("percent", [95, 99.5])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_same_gradient_as_the_dense_one(small_model, percent, checkpointing, dtype, tolerance):
    model = small_model.to(dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    ticket = ticket_of(model, percent)
    dense, _ = flat_gradient(model, ticket, OptimizerConfig(weight_gradient=WeightGradient.dense), seeds=(1, 2))
    sampled, lines = flat_gradient(model, ticket, SAMPLED, seeds=(1, 2))
    assert not lines
    assert len(ticket.sampled) == 15  # seven linear layers in each of two blocks, and the tied embedding
    assert not torch.equal(sampled, dense)
    assert_same_by_tensor(ticket, sampled, dense, tolerance)


def test_same_gradient_at_real_shapes():
    """One block of Qwen2.5-0.5B with its whole vocabulary; more tokens than fit one tile."""
    shape = AutoConfig.from_pretrained(ASSETS / "qwen2.5-0.5b")
    shape.num_hidden_layers = 1
    shape.layer_types = ["full_attention"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    ticket = ticket_of(model, 99)
    batch = {"rows": 2, "tokens": 160}
    flat_gradient(model, ticket, OptimizerConfig(), **batch)
    assert {name.split(".")[-2] for name in ticket.sampled} == {"embed_tokens", "q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    sampled, _ = flat_gradient(model, ticket, SAMPLED, **batch)
    assert len(ticket.sampled) == 8
    dense, _ = flat_gradient(model, ticket, OptimizerConfig(weight_gradient=WeightGradient.dense), **batch)
    assert_same_by_tensor(ticket, sampled, dense, 1e-5)


class Shapes(TorchDispatchMode):
    """Shapes of every strided tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            isinstance(out, torch.Tensor)
            and out.layout == torch.strided
            and not func.__name__.startswith(("detach", "t.", "transpose", "view"))
        ):
            self.seen.add(tuple(out.shape))
        return out


def test_no_dense_gradient_is_ever_made(small_model):
    ticket = ticket_of(small_model, 98)
    weights = {ticket.shapes[name] for name in choose_sampled(small_model, ticket, SAMPLED)[0]}
    made = {}
    for config in (SAMPLED, OptimizerConfig(weight_gradient=WeightGradient.dense)):
        with Shapes() as shapes:
            flat_gradient(small_model, ticket, config, rows=3, tokens=21)
        made[config.weight_gradient] = shapes.seen & weights
    assert made == {WeightGradient.sampled: set(), WeightGradient.dense: weights}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures(kind):
    model = OTHERS[kind]()
    ticket = ticket_of(model, 95)
    dense, _ = flat_gradient(model, ticket, OptimizerConfig(weight_gradient=WeightGradient.dense), seeds=(5,), rows=6)
    sampled, lines = flat_gradient(model, ticket, SAMPLED, seeds=(5,), rows=6)
    assert ticket.sampled
    # Tensors of other modules get dense gradients and are named: GPT-2's Conv1D, OPT's positions with their offset.
    assert len(lines) == {"llama, untied": 0, "gpt2, whose layers are not nn.Linear": 8, "opt, with learned positions": 1}[kind], lines
    torch.testing.assert_close(sampled, dense, rtol=1e-4, atol=1e-7)


def test_padding_rows_get_no_gradient():
    model = OTHERS["llama, untied"]()
    assert model.get_input_embeddings().padding_idx == 5
    ticket = ticket_of(model, 50)
    ticket.sampled, _ = choose_sampled(model, ticket, SAMPLED)
    ticket.zero_gradient()
    ids = torch.tensor([[5, 5, 7, 8, 5, 9]])
    with sampled_gradients(model, ticket):
        model(input_ids=ids).logits.square().sum().backward()
    name = "model.embed_tokens.weight"
    rows = ticket.indices[name].long() // 32
    gradient = ticket.values.grad[ticket.slices[name]]
    assert (gradient[rows == 5] == 0).all() and (rows == 5).any()
    assert (gradient[torch.isin(rows, torch.tensor([7, 8, 9]))] != 0).all()


def test_the_model_is_unpatched_afterwards(small_model):
    ticket = ticket_of(small_model, 98)
    ticket.sampled, _ = choose_sampled(small_model, ticket, SAMPLED)
    flags = {name: p.requires_grad for name, p in small_model.named_parameters()}
    with pytest.raises(ZeroDivisionError), sampled_gradients(small_model, ticket):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in small_model.modules())
    assert flags == {name: p.requires_grad for name, p in small_model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 16, 64, 65])
def test_products_by_feature_are_exact_and_their_rows_are_odd_numbers_of_cache_lines(dtype, tokens):
    draw = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randint(-4, 5, shape, generator=draw).to(dtype) for shape in ((7, 5), (5, tokens), (7,)))
    for shift in (None, bias):
        product = padded_matmul(a, b, shift)
        assert torch.equal(product, a @ b + (0 if shift is None else shift.unsqueeze(1)))
        lines, rest = divmod(product.stride(0) * product.element_size(), 64)
        assert product.stride(1) == 1 and rest == 0 and lines % 2 == 1
