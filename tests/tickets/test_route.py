"""Which tensors get sampled gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mth.config.choices import ClipNorm, WeightGradient
from mth.config.schema import OptimizerConfig
from mth.foundations.errors import UserError
from mth.tickets.route import choose_sampled, sampling_is_cheaper
from tests.conftest import make_config
from tests.tickets.models import SAMPLED, assert_same_by_tensor, flat_gradient, ticket_of

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
def test_a_weight_that_is_used_elsewhere_gets_a_dense_gradient(small_model, use):
    name = "model.layers.1.mlp.up_proj.weight"
    model = Borrower(small_model, name, BORROWED[use])
    ticket = ticket_of(model, 95)
    dense, _ = flat_gradient(model, ticket, OptimizerConfig(weight_gradient=WeightGradient.dense))
    sampled, lines = flat_gradient(model, ticket, SAMPLED)
    assert [line.split(":")[0] for line in lines] == [f"model.{name}"]
    assert f"model.{name}" not in ticket.sampled and len(ticket.sampled) == 14
    assert_same_by_tensor(ticket, sampled, dense, 1e-5)


def test_auto_samples_where_it_is_cheaper(small_model):
    assert sampling_is_cheaper(4864, 896, 43581) and sampling_is_cheaper(151936, 896, 1361346) and sampling_is_cheaper(896, 896, 8028)
    assert not sampling_is_cheaper(128, 896, 1146) and not sampling_is_cheaper(512, 192, 983)  # too small to make up for the transposes
    assert not sampling_is_cheaper(4864, 896, 4864 * 896 // 2)  # too many entries
    assert sampling_is_cheaper(128, 896, 11) and sampling_is_cheaper(512, 192, 98)  # so few entries that little is transposed
    ticket = ticket_of(small_model, 98)
    assert choose_sampled(small_model, ticket, OptimizerConfig(clip_norm=ClipNorm.dense)) == (frozenset(), [])
    ticket.detach()
    full = ticket_of(small_model, 0)
    assert choose_sampled(small_model, full, SAMPLED) == (frozenset(), [])


def test_dense_clipping_excludes_sampled_gradients():
    with pytest.raises(UserError, match=r"optimizer\.clip_norm=dense needs whole gradients"):
        make_config(optimizer={"clip_norm": "dense", "weight_gradient": "sampled"})
