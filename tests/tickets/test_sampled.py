"""Gradients computed at the active entries alone, against the dense ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from mth.config import ClipNorm, MaskFamily, OptimizerConfig, WeightGradient
from mth.errors import UserError
from mth.paths import ASSETS
from mth.policy import model_parameters
from mth.tickets.sampled import (
    add_product,
    aligned_product,
    choose_sampled,
    gradient_pattern,
    narrow,
    occupied,
    sampled_gradients,
    worth_sampling,
)
from mth.tickets.sampling import sample_mask
from mth.tickets.ticket import Ticket
from tests.conftest import make_config

SAMPLED = OptimizerConfig(weight_gradient=WeightGradient.sampled)


def ticket_of(model, percent, seed=0):
    parameters = model_parameters(model)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    return Ticket(parameters, sample_mask(shapes, MaskFamily.random, percent, seed))


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


@pytest.mark.parametrize("percent", [95, 99.5])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_same_gradient_as_the_dense_door(small_model, percent, checkpointing, dtype, tolerance):
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


def small(kind, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(vocab_size=97, max_position_embeddings=64, **settings)).eval()


OTHERS = {
    "llama, untied": lambda: small(LlamaConfig, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False, pad_token_id=5),
    "gpt2, whose layers are not nn.Linear": lambda: small(GPT2Config, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "opt, with learned positions": lambda: small(OPTConfig, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, dropout=0.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures(kind):
    model = OTHERS[kind]()
    ticket = ticket_of(model, 95)
    dense, _ = flat_gradient(model, ticket, OptimizerConfig(weight_gradient=WeightGradient.dense), seeds=(5,), rows=6)
    sampled, lines = flat_gradient(model, ticket, SAMPLED, seeds=(5,), rows=6)
    assert ticket.sampled
    # What is not plain takes the dense door and is named: GPT-2's Conv1D, OPT's positions with their offset.
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


BORROWED = {
    "linear": lambda w: functional.linear(torch.ones(1, w.shape[1]), w),
    "matmul with the transpose": lambda w: torch.ones(1, w.shape[1]) @ w.T,
    "rows": lambda w: w[torch.tensor([0, 3, 5])],
    "inside a list": lambda w: torch.cat([w, w]),
}


class Borrower(nn.Module):
    """Computes with a weight that belongs to another module."""

    def __init__(self, model, name, use):
        super().__init__()
        self.model, self.config, self.name, self.use = model, model.config, name, use

    def forward(self, input_ids, labels=None, use_cache=None):
        out = self.model(input_ids=input_ids, labels=labels)
        weight = self.model.get_parameter(self.name)
        extra = self.use(weight).square().sum()
        out.loss = None if labels is None else out.loss + extra
        out.logits = out.logits + extra
        return out


@pytest.mark.parametrize("use", BORROWED)
def test_a_weight_that_is_used_elsewhere_takes_the_dense_door(small_model, use):
    name = "model.layers.1.mlp.up_proj.weight"
    model = Borrower(small_model, name, BORROWED[use])
    ticket = ticket_of(model, 95)
    dense, _ = flat_gradient(model, ticket, OptimizerConfig(weight_gradient=WeightGradient.dense))
    sampled, lines = flat_gradient(model, ticket, SAMPLED)
    assert [line.split(":")[0] for line in lines] == [f"model.{name}"]
    assert f"model.{name}" not in ticket.sampled and len(ticket.sampled) == 14
    assert_same_by_tensor(ticket, sampled, dense, 1e-5)


def test_the_model_is_its_own_again_afterwards(small_model):
    ticket = ticket_of(small_model, 98)
    ticket.sampled, _ = choose_sampled(small_model, ticket, SAMPLED)
    flags = {name: p.requires_grad for name, p in small_model.named_parameters()}
    with pytest.raises(ZeroDivisionError), sampled_gradients(small_model, ticket):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in small_model.modules())
    assert flags == {name: p.requires_grad for name, p in small_model.named_parameters()}


def test_which_tensors_are_worth_it(small_model):
    assert worth_sampling(4864, 896, 43581) and worth_sampling(151936, 896, 1361346) and worth_sampling(896, 896, 8028)
    assert not worth_sampling(128, 896, 1146) and not worth_sampling(512, 192, 983)  # too small to pay for the transposes
    assert not worth_sampling(4864, 896, 4864 * 896 // 2)  # too many entries
    assert worth_sampling(128, 896, 11) and worth_sampling(512, 192, 98)  # so few entries that little is transposed
    ticket = ticket_of(small_model, 98)
    assert choose_sampled(small_model, ticket, OptimizerConfig(clip_norm=ClipNorm.dense)) == (frozenset(), [])
    full = ticket_of(small_model, 0)
    assert choose_sampled(small_model, full, SAMPLED) == (frozenset(), [])


def test_dense_clipping_excludes_sampled_gradients():
    with pytest.raises(UserError, match=r"optimizer\.clip_norm=dense needs whole gradients"):
        make_config(optimizer={"clip_norm": "dense", "weight_gradient": "sampled"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 16, 64, 65])
def test_products_by_feature_are_exact_and_their_rows_are_odd_numbers_of_cache_lines(dtype, tokens):
    draw = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randint(-4, 5, shape, generator=draw).to(dtype) for shape in ((7, 5), (5, tokens), (7,)))
    for shift in (None, bias):
        product = aligned_product(a, b, shift)
        assert torch.equal(product, a @ b + (0 if shift is None else shift.unsqueeze(1)))
        lines, rest = divmod(product.stride(0) * product.element_size(), 64)
        assert product.stride(1) == 1 and rest == 0 and lines % 2 == 1


@pytest.mark.parametrize(("percent", "few_rows", "few_columns"), [(98, False, False), (99.5, True, False), (99.9, True, True)])
def test_of_very_sparse_tensors_only_rows_and_columns_with_entries_are_read_and_kept(percent, few_rows, few_columns):
    """Whole numbers, so that every order of summing gives the same sum."""
    rows, columns, tokens = 320, 240, 50
    layer = nn.Linear(columns, rows)
    ticket = ticket_of(nn.ModuleDict({"layer": layer}), percent)
    ticket.sampled = frozenset(["layer.weight"])
    index = ticket.indices["layer.weight"].long()
    active = narrow(gradient_pattern(ticket, "layer.weight"))
    read_rows = (index // columns).unique() if few_rows else torch.arange(rows)
    read_columns = (index % columns).unique() if few_columns else torch.arange(columns)
    assert torch.equal(active.rows, read_rows) if few_rows else active.rows is None
    assert torch.equal(active.columns, read_columns) if few_columns else active.columns is None
    assert active.pattern.shape == (read_rows.numel(), read_columns.numel())
    assert occupied(columns, index.numel()) == pytest.approx(read_columns.numel(), rel=0.1)

    draw = torch.Generator().manual_seed(0)
    x, dy = (torch.randint(-4, 5, (tokens, n), generator=draw).float() for n in (columns, rows))
    expected = 2 + (dy.t() @ x).flatten()[index]
    place = ticket.slices["layer.weight"]
    for by_token in (True, False):
        ticket.values.grad.fill_(2)
        add_product(active, dy if by_token else dy.t().contiguous().t(), x.t()[read_columns])
        assert torch.equal(ticket.values.grad[place], expected)

    kept = []
    ticket.values.grad.fill_(2)
    x.requires_grad_()
    with (
        sampled_gradients(nn.ModuleDict({"layer": layer}), ticket),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        layer(x).backward(dy)
    assert torch.equal(ticket.values.grad[place], expected)
    assert torch.equal(x.grad, dy @ layer.weight)
    assert [t.numel() for t in kept if t.shape != layer.weight.shape] == [tokens * read_columns.numel()]
