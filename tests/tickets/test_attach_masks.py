"""What `mth.attach` takes as a mask and as a model, and what it refuses."""

import copy

import numpy as np
import pytest
import torch

import mth
from mth.config.schema import MaskConfig, SparsityConfig
from mth.foundations.errors import UserError
from mth.tickets.draw import draw_ticket
from mth.tickets.masks.base import Family
from mth.tickets.masks.random import random_entries
from tests.conftest import make_config
from tests.tickets.test_attach import masks_of


@pytest.mark.parametrize(
    ("name", "options"), [("random", {}), ("magnitude", {"magnitude": "smallest"}), ("first_layer", {"budget": "matched"})]
)
def test_a_named_mask_is_the_one_that_mth_train_draws(small_model, name, options):
    config = make_config(mask={"family": name, "options": {}, "budget": None, "magnitude": None} | options, sparsity={"percent": 96.5})
    config.mask_seed = 42
    expected = draw_ticket(small_model, config)
    digest = expected.mask_sha256
    expected.detach()
    assert mth.attach(small_model, sparsity=96.5, mask=name, mask_seed=42, **options).mask_sha256 == digest


def test_the_defaults_are_those_of_the_configuration(small_model):
    ticket = mth.attach(small_model)
    assert (ticket.recipe["sparsity"], ticket.recipe["mask_seed"]) == (SparsityConfig().percent, make_config().mask_seed)


def test_masks_of_your_own(small_model):
    def largest_rows(name, weight, count, mask_seed):
        if weight.dim() < 2:
            return []
        rows = weight.norm(dim=1).topk(count // weight.shape[1]).indices
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask[rows] = True
        return mask

    ticket = mth.attach(small_model, sparsity=90, mask=largest_rows)
    masks = masks_of(ticket)
    for name, mask in masks.items():
        rows = mask.any(-1)
        assert not mask.any() if mask.dim() < 2 else int(rows.sum()) == int(0.1 * mask.numel()) // mask.shape[1]
        assert mask.dim() < 2 or mask[rows].all(), name
    digest = ticket.mask_sha256
    ticket.detach()

    ticket = mth.attach(small_model, mask={name: mask.flatten().nonzero()[:, 0].flip(0) for name, mask in masks.items()})
    assert ticket.mask_sha256 == digest
    ticket.detach()
    name = "model.layers.0.self_attn.q_proj.weight"
    ticket = mth.attach(small_model, mask={name: None, "model.norm.weight": [3, 1]})
    assert ticket.active_parameters == small_model.get_parameter(name).numel() + 2
    ticket.detach()

    family = Family(random_entries)
    expected = mth.attach(small_model, sparsity=95, mask_seed=2)
    digest = expected.detach() and expected.mask_sha256
    assert mth.attach(small_model, sparsity=95, mask=family, mask_seed=2).mask_sha256 == digest


BAD = {
    "a sparsity out of range": ({"sparsity": 100}, "sparsity.percent=100"),
    "a sparsity that is no number": ({"sparsity": "many"}, "many"),
    "a sparsity that leaves nothing": ({"sparsity": 99.999999}, "leaves no active entry"),
    "an unknown family": ({"mask": "lottery"}, "mask.family=lottery is unknown"),
    "an unknown option": ({"depth": 3}, "mask.options.depth is unknown"),
    "a wrong value of an option": ({"mask": "magnitude", "magnitude": "middle"}, "middle"),
    "a negative seed": ({"mask_seed": -1}, "mask_seed=-1"),
    "no mask at all": ({"mask": 3}, "a name, a function or a dictionary"),
    "entries and a sparsity": ({"mask": {"model.norm.weight": [1]}, "sparsity": 99}, "leave out sparsity"),
    "an unknown tensor": ({"mask": {"lm_head.wait": [1]}}, "no tensor 'lm_head.wait'"),
    "an index outside": ({"mask": {"model.norm.weight": [64]}}, "mask of model.norm.weight: an index is outside"),
    "an index twice": ({"mask": {"model.norm.weight": [3, 3]}}, "given twice"),
    "indices that are no integers": ({"mask": {"model.norm.weight": [0.5]}}, "must be integers"),
    "a boolean mask of another size": ({"mask": {"model.norm.weight": np.ones(5, bool)}}, "5 booleans for a tensor of 64"),
    "no entry": ({"mask": {}}, "no active entry"),
    "a function with an option": ({"mask": lambda *_: None, "top": 3}, "takes no options"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_in_one_line_and_leaves_the_model_as_it_is(small_model, bad):
    arguments, message = BAD[bad]
    with pytest.raises(UserError, match=message) as caught:
        mth.attach(small_model, **arguments)
    assert "\n" not in str(caught.value)
    assert not hasattr(small_model, "mth_ticket") and not small_model.model.norm.weight._post_accumulate_grad_hooks


def test_models_that_cannot_be_trained_are_refused(small_model):
    ticket = mth.attach(small_model, sparsity=97)
    with pytest.raises(UserError, match=r"has a ticket already: call model\.mth_ticket\.merge\(\)"):
        mth.attach(small_model, sparsity=97)
    with pytest.raises(UserError, match="a part of the model has a ticket"):
        mth.attach(small_model.model, sparsity=97)
    ticket.detach()
    draw = draw_ticket(small_model, make_config(mask=vars(MaskConfig())))
    with pytest.raises(UserError, match="has a ticket"):
        mth.attach(small_model)
    draw.detach()
    with pytest.raises(UserError, match="needs a torch module"):
        mth.attach("gpt2")
    with pytest.raises(UserError, match="no weights yet"):
        mth.attach(copy.deepcopy(small_model).to("meta"))
    spread = copy.deepcopy(small_model)
    spread.model.norm.to("meta")
    with pytest.raises(UserError, match="spread over cpu, meta"):
        mth.attach(spread)
    small_model.lm_head.weight = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="quantized"):
        mth.attach(small_model)


def test_several_processes_are_refused(small_model, monkeypatch):
    ticket = mth.attach(small_model, sparsity=97)
    optimizer = ticket.optimizer(torch.optim.SGD, lr=0.1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="trains in one process"):
        optimizer.step()
