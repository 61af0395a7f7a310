"""A ticket whose entries kernels move, against the same ticket without them. The kernels run in Triton's interpreter."""

import copy
import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mth.tickets import launches, products, trial
from mth.tickets.ticket import Ticket
from tests.tickets.models import backward, ticket_of

pytestmark = pytest.mark.usefixtures("launched")


def pair(model, twin, monkeypatch, make):
    """The same ticket with kernels, on the model, and without, on its twin."""
    with monkeypatch.context() as patch:
        patch.setattr("mth.tickets.ticket.moves_work", lambda device: False)
        without = make(twin)
    made = make(model)
    assert made.few_launches and not without.few_launches
    return made, without


def odd_model():
    """Tensors of two dtypes and of one entry, more entries than one program moves, and tensors that are active as a whole or not at all."""
    torch.manual_seed(0)
    parts = {"large": nn.Linear(70, 61), "short": nn.Linear(9, 7).bfloat16(), "one": nn.Linear(1, 1), "whole": nn.Linear(67, 31).bfloat16()}
    return nn.ModuleDict(parts)


def odd_ticket(model):
    draw = np.random.default_rng(0)
    indices = {}
    for name, parameter in model.named_parameters():
        size, part = parameter.numel(), name.split(".")[0]
        chosen = np.sort(draw.choice(size, max(1, size // 3), replace=False)).astype(np.int32)
        indices[name] = {"whole": None, "short": chosen.astype(np.int64)}.get(part, chosen)
    indices["large.bias"] = np.array([], dtype=np.int32)
    return Ticket(dict(model.named_parameters()), indices)


def some_values(ticket):
    return torch.randn(ticket.active_parameters, generator=torch.Generator().manual_seed(1))


def assert_same_weights(model, twin):
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_launch_gives_the_same_bits(small_model, monkeypatch, launched, dtype):
    model = small_model.to(dtype)
    twin = copy.deepcopy(model)
    ticket, plain = pair(model, twin, monkeypatch, lambda model: ticket_of(model, 90))
    assert launched == {"move_entries": 1} and torch.equal(ticket.values, plain.values)
    for seed in (1, 2):
        backward(model, (seed,))
        backward(twin, (seed,))
        assert torch.equal(ticket.values.grad, plain.values.grad) and plain.values.grad.any()
    assert launched == {"move_entries": 3}  # one a backward
    assert all(parameter.grad is None for parameter in model.parameters())
    values = some_values(ticket)
    for each in (ticket, plain):
        each.write(values)
    assert launched == {"move_entries": 4}
    assert_same_weights(model, twin)
    assert torch.equal(ticket.read(), values.to(dtype).float())


def test_odd_tensors(monkeypatch, launched, interpreted_kernels):
    monkeypatch.setattr(interpreted_kernels, "MOST", 2)  # tensors of a table
    model, twin = odd_model(), odd_model()
    ticket, plain = pair(model, twin, monkeypatch, odd_ticket)
    assert launched == {"move_entries": 4}  # fp32: two tables; bf16: one for int64 indices, one for whole tensors
    assert torch.equal(ticket.values, plain.values)
    for each in (ticket, plain):
        each._add({name: torch.full_like(parameter, 1 / 3).cumsum(0) for name, parameter in each.parameters.items()})
        each.write(some_values(each))
    assert torch.equal(ticket.values.grad, plain.values.grad) and plain.values.grad.any()
    assert_same_weights(model, twin)
    assert torch.equal(ticket.read(), plain.read())


def test_tensors_may_move_in_memory(launched):
    model = odd_model()
    ticket = odd_ticket(model)
    old = {name: parameter.data for name, parameter in model.named_parameters()}
    kept = {name: tensor.clone() for name, tensor in old.items()}
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    ticket.write(torch.zeros(ticket.active_parameters))
    assert all(torch.equal(old[name], kept[name]) for name in old)
    assert not ticket.read().any()
    for dtype in (torch.float32, torch.bfloat16):
        others = {name: torch.full_like(tensor, 9, dtype=dtype) for name, tensor in old.items()} | {"stranger": torch.full((3,), 9.0)}
        ticket.write(some_values(ticket), into=others)
        read = torch.cat([ticket._take(name, others[name]) for name in ticket.slices])
        assert torch.equal(read, some_values(ticket).to(dtype)) and not ticket.read().any()
        assert sum(int((other != 9).sum()) for other in others.values()) == ticket.active_parameters
    assert len(ticket._tables) == launches.KEPT_TABLES
    before = launched.total()
    ticket.write()
    assert launched.total() == before + 3  # int32, int64 and whole


def test_a_tensor_that_is_not_contiguous_is_left_to_torch(launched):
    model = nn.Linear(3, 5)
    ticket = Ticket(dict(model.named_parameters()), {"weight": np.array([1, 5], dtype=np.int32), "bias": None})
    model.weight.data = model.weight.data.t().contiguous().t()
    before = launched.total()
    assert torch.equal(ticket.read(), ticket.values.data) and launched.total() == before


def test_gradients_wait_for_others_within_bounds(small_model, monkeypatch, launched):
    twin = copy.deepcopy(small_model)
    ticket, plain = pair(small_model, twin, monkeypatch, lambda model: ticket_of(model, 90))
    held = []
    add = Ticket._add
    monkeypatch.setattr(
        Ticket, "_add", lambda self, gradients: held.append([g.numel() for g in gradients.values()]) or add(self, gradients)
    )
    monkeypatch.setattr(launches, "WAITING_BYTES", 4 * 10_000)
    monkeypatch.setattr(launches, "WAITING_TENSORS", 5)
    launched.clear()
    backward(small_model)
    held = [sizes for sizes in held if sizes]
    assert all(sum(sizes[:-1]) < 10_000 and len(sizes) <= 5 for sizes in held)
    assert any(len(sizes) == 5 for sizes in held) and any(sum(sizes) >= 10_000 for sizes in held)
    assert launched.total() == len(held) < 12
    backward(twin)
    assert torch.equal(ticket.values.grad, plain.values.grad)


def test_gradients_of_one_tensor_are_added_while_they_wait():
    waiting = launches.Waiting()
    for value in (1.0, 2.0):
        waiting.add("weight", torch.full((2,), value))
    assert waiting.take()["weight"].tolist() == [3.0, 3.0] and not waiting.gradients and not waiting.bytes


class Fails(torch.autograd.Function):
    """Fails in backward, after a gradient of the weight has come."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ZeroDivisionError


def test_a_backward_that_fails_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    ticket = Ticket(dict(model.named_parameters()), dict.fromkeys(dict(model.named_parameters())))
    x = torch.ones(4, 3)
    with pytest.raises(ZeroDivisionError):
        model[1](Fails.apply(model[0](x))).sum().backward()
    gc.collect()
    assert not ticket.values.grad.any() and not ticket._waiting
    model(x).sum().backward()
    first = ticket.values.grad.clone()
    ticket.zero_gradient()
    model(x).sum().backward()
    assert torch.equal(ticket.values.grad, first) and first.any()
    assert not ticket._waiting


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_weight_whose_gradient_comes_in_parts(monkeypatch, reentrant):
    """A reentrant checkpoint runs a backward within the backward, each with a gradient of the same weight."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    twin = copy.deepcopy(model)
    pair_ = pair(model, twin, monkeypatch, lambda model: Ticket(dict(model.named_parameters()), {"weight": None, "bias": None}))
    for each in (model, twin):
        x = torch.arange(8.0).view(2, 4).requires_grad_()
        for _ in range(2):
            x = each(checkpoint(each, x, use_reentrant=reentrant))
        x.square().sum().backward()
    torch.testing.assert_close(pair_[0].values.grad, pair_[1].values.grad, rtol=1e-6, atol=0)
    assert pair_[0].values.grad.all()


def test_norm_of_the_dense_gradient(small_model, monkeypatch, launched):
    twin = copy.deepcopy(small_model)
    ticket, plain = pair(small_model, twin, monkeypatch, lambda model: ticket_of(model, 98, dense_norm=True))
    launched.clear()
    for model in (small_model, twin):
        backward(model)
    assert torch.equal(ticket.finish_gradient(), plain.finish_gradient())
    assert launched == {"move_entries": 1} and torch.equal(ticket.values.grad, plain.values.grad)
    assert all(parameter.grad is None for parameter in small_model.parameters())


def test_a_gradient_that_a_foreign_loop_has_cleared(small_model):
    ticket = ticket_of(small_model, 98)
    backward(small_model)
    first = ticket.values.grad
    ticket.values.grad = None
    backward(small_model)
    assert torch.equal(ticket.values.grad, first) and ticket.values.grad is not first


def test_kernels_are_tried_before_they_are_used(monkeypatch, capsys):
    cpu = torch.device("cpu")
    trials = {trial._try_moves: "moved entries became [10.0, 20.0", trial._try_products: "a sum of products is wrong"}
    for each in trials:
        each(cpu)
    for module in (launches, products):
        monkeypatch.setattr(module, "launch", lambda *arguments, **constants: None)
    for each, why in trials.items():
        assert trial._tried.__wrapped__(cpu, each) is False
        assert f"a ticket's kernels do not work here, so torch does their work, slower: RuntimeError: {why}" in capsys.readouterr().out
    assert not trial.moves_work(cpu) and not trial.products_work(cpu)
