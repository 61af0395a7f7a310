"""Delta checkpoints: atomic, exact, and refused with one clear line when they do not fit."""

import copy
import dataclasses
import json
import math
import os
import resource
import signal

import pytest
import torch
from safetensors import safe_open

from mth.config.schema import OptimizerConfig
from mth.foundations.errors import UserError
from mth.runs.checkpoint import (
    checkpoint_path,
    checkpoints_of,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    restore_ticket,
    restore_training,
    save_checkpoint,
)
from mth.tickets.draw import draw_ticket
from mth.tickets.optimizer import build_optimizer
from tests.conftest import make_config
from tests.tickets.test_ticket import backward, ticket_of


def trained(model, percent=95, steps=2, seed=0):
    ticket = ticket_of(model, percent, seed=seed)
    optimizer = build_optimizer(ticket, OptimizerConfig(), 1e-2)
    for step in range(steps):
        ticket.zero_gradient()
        backward(model, step)
        optimizer.step()
        ticket.write()
    return ticket, optimizer


def test_a_restored_run_continues_with_the_same_bits(tmp_path, small_model):
    fresh, config = copy.deepcopy(small_model), make_config()
    ticket, optimizer = trained(small_model)
    save_checkpoint(tmp_path / "c.safetensors", ticket, config, 2, optimizer, {})
    other = ticket_of(fresh, 95)
    other_optimizer = build_optimizer(other, OptimizerConfig(), 1e-2)
    assert restore_training(load_checkpoint(tmp_path / "c.safetensors"), other, other_optimizer, config) == (2, None)
    for t, o, m in ((ticket, optimizer, small_model), (other, other_optimizer, fresh)):
        t.zero_gradient()
        backward(m, 7)
        o.step()
        t.write()
    assert torch.equal(ticket.values, other.values)
    assert all(torch.equal(p, q) for p, q in zip(small_model.parameters(), fresh.parameters(), strict=True))


def test_size_is_values_and_moments(tmp_path, small_model):
    ticket, optimizer = trained(small_model, percent=50)
    save_checkpoint(tmp_path / "c.safetensors", ticket, make_config(), 2, optimizer, {})
    size, payload = (tmp_path / "c.safetensors").stat().st_size, 12 * ticket.active_parameters
    assert payload < size < payload + 16_384  # header and RNG state; below 2 % for any real ticket


def test_misfits_are_refused(tmp_path, small_model):
    config = make_config()
    ticket, optimizer = trained(small_model)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, ticket, config, 2, optimizer, {})
    saved = load_checkpoint(path)
    with pytest.raises(UserError, match=r"another configuration: mask_seed \(0, here 1\)"):
        restore_training(saved, ticket, optimizer, make_config(mask_seed=1))
    with pytest.raises(UserError, match="another mask"):
        restore_ticket(saved, ticket_of(copy.deepcopy(small_model), 95, seed=1))
    with pytest.raises(UserError, match="another model"):
        restore_ticket(saved, ticket_of(torch.nn.Linear(50, 40), 95))
    stranger = copy.deepcopy(small_model)
    for parameter in stranger.parameters():
        parameter.data += 1
    with pytest.raises(UserError, match="another model: base_sha256"):
        restore_ticket(saved, ticket_of(stranger, 95))
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or truncated"):
        load_checkpoint(tmp_path / "cut.safetensors")
    from safetensors.torch import save_file

    save_file({"values": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not written by mth"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, small_model):
    ticket, optimizer = trained(small_model)
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_path(tmp_path, step), ticket, make_config(), step, optimizer, {})
    prune_checkpoints(tmp_path, 2)
    assert [p.name for p in checkpoints_of(tmp_path)] == ["step_000002.safetensors", "step_000003.safetensors"]
    newest = checkpoint_path(tmp_path, 3)
    newest.write_bytes(newest.read_bytes()[:50])
    found, warnings = latest_checkpoint(tmp_path)
    assert found.header["step"] == 2
    assert len(warnings) == 1
    assert "step_000003" in warnings[0]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, small_model):
    """The kernel refuses to let files grow past 20 kB: to the program, a full disk."""
    ticket, optimizer = trained(small_model, percent=50)
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, ticket, make_config(), 1, optimizer, {})
    before = path.read_bytes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="could not be written"):
            save_checkpoint(path, ticket, make_config(), 1, optimizer, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_is_on_disk_before_it_gets_its_name(tmp_path, small_model, monkeypatch):
    ticket, optimizer = trained(small_model)
    path, order = checkpoint_path(tmp_path, 1), []
    monkeypatch.setattr(os, "fsync", lambda handle: order.append(("fsync", os.fstat(handle).st_size)))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(("rename", os.stat(source).st_size)), rename(source, target)))
    save_checkpoint(path, ticket, make_config(), 1, optimizer, {})
    assert order[:2] == [("fsync", path.stat().st_size), ("rename", path.stat().st_size)]


def test_metrics_that_are_no_numbers_survive_in_valid_json(tmp_path, small_model):
    """A step whose loss is NaN may be saved before it is logged."""
    ticket, optimizer = trained(small_model)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, ticket, make_config(), 2, optimizer, {}, {"loss": math.nan, "grad_norm": math.inf, "entropy": 0.5})
    with safe_open(path, framework="pt") as file:
        json.loads(file.metadata()["mth"], parse_constant=lambda name: pytest.fail(f"bare {name}"))
    unlogged = load_checkpoint(path).header["unlogged"]
    assert math.isnan(unlogged.pop("loss"))
    assert unlogged == {"grad_norm": math.inf, "entropy": 0.5}


@pytest.mark.parametrize("mask", [{"family": "magnitude", "magnitude": "smallest"}, {"family": "last_layer", "budget": "whole_layer"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_is_drawn_again_from_the_base_model_and_a_checkpoint_fits(tmp_path, small_policy, mask, dtype):
    base = small_policy.model.to(dtype)
    fresh = dataclasses.replace(small_policy, model=copy.deepcopy(base))
    config = make_config(mask=mask, sparsity={"percent": 90})
    ticket = draw_ticket(small_policy.model, config)
    if mask["family"] == "magnitude":
        name = "model.layers.0.mlp.up_proj.weight"
        inside = torch.zeros(fresh.model.get_parameter(name).numel(), dtype=torch.bool)
        inside[ticket.indices[name].long()] = True
        sizes = fresh.model.get_parameter(name).detach().float().abs().flatten()
        assert sizes[inside].max() <= sizes[~inside].min()
    else:
        assert ticket.active_parameters == sum(p.numel() for p in fresh.model.model.layers[-1].parameters())
    ticket.values.data.mul_(3)
    ticket.write()
    save_checkpoint(checkpoint_path(tmp_path, 1), ticket, config, 1, build_optimizer(ticket, config.optimizer, 1e-3), {})
    again = draw_ticket(fresh.model, load_checkpoint(checkpoint_path(tmp_path, 1)).config)
    restore_ticket(load_checkpoint(checkpoint_path(tmp_path, 1)), again)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), fresh.model.parameters(), strict=True))
    again.detach()
    with pytest.raises(UserError, match="belongs to another"):
        restore_ticket(load_checkpoint(checkpoint_path(tmp_path, 1)), draw_ticket(fresh.model, make_config(sparsity={"percent": 90})))
