"""Patterns without empty rows and columns."""

import pytest
import torch
from torch import nn

from mth.tickets.patterns import compact, expected_nonempty, gradient_pattern
from mth.tickets.sampled_gradients import add_sampled_product, sampled_gradients
from tests.tickets.models import ticket_of


@pytest.mark.parametrize(("percent", "few_rows", "few_columns"), [(98, False, False), (99.5, True, False), (99.9, True, True)])
def test_very_sparse_tensors_read_and_keep_only_rows_and_columns_with_entries(percent, few_rows, few_columns):
    """Whole numbers, so that every order of summing gives the same sum."""
    rows, columns, tokens = 320, 240, 50
    layer = nn.Linear(columns, rows)
    ticket = ticket_of(nn.ModuleDict({"layer": layer}), percent)
    ticket.sampled = frozenset(["layer.weight"])
    index = ticket.indices["layer.weight"].long()
    active = compact(gradient_pattern(ticket, "layer.weight"))
    read_rows = (index // columns).unique() if few_rows else torch.arange(rows)
    read_columns = (index % columns).unique() if few_columns else torch.arange(columns)
    assert torch.equal(active.rows, read_rows) if few_rows else active.rows is None
    assert torch.equal(active.columns, read_columns) if few_columns else active.columns is None
    assert active.pattern.shape == (read_rows.numel(), read_columns.numel())
    assert expected_nonempty(columns, index.numel()) == pytest.approx(read_columns.numel(), rel=0.1)

    draw = torch.Generator().manual_seed(0)
    x, dy = (torch.randint(-4, 5, (tokens, n), generator=draw).float() for n in (columns, rows))
    expected = 2 + (dy.t() @ x).flatten()[index]
    place = ticket.slices["layer.weight"]
    for token_major in (True, False):
        ticket.values.grad.fill_(2)
        add_sampled_product(active, dy if token_major else dy.t().contiguous().t(), x.t()[read_columns])
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
