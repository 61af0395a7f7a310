"""`mth.attach` in a plain PyTorch loop: the same numbers as a dense loop with masked gradients, and nothing left behind."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

import mth
from mth.foundations.errors import UserError


def batch(model, seed):
    return torch.randint(model.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(seed))


def loss_of(model, seed):
    ids = batch(model, seed)
    return model(input_ids=ids, labels=ids).loss


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def masks_of(ticket):
    """Boolean masks by tensor."""
    found = {}
    for name, index in ticket._ticket.indices.items():
        mask = torch.zeros(ticket._ticket.parameters[name].numel(), dtype=torch.bool)
        mask[slice(None) if index is None else index.long()] = True
        found[name] = mask.view(ticket._ticket.shapes[name])
    return found


def assert_only_active_entries_moved(model, before, masks, share=0.9):
    moved = 0
    for name, mask in masks.items():
        changed = model.get_parameter(name).detach() != before[name]
        assert not changed[~mask].any(), name
        moved += int(changed.sum())
    assert moved > share * sum(int(mask.sum()) for mask in masks.values())


def train(model, optimizer, schedule, clip, masks=None, steps=3):
    """Two micro-batches a step. With masks, gradients are dense and masked before they are clipped."""
    norms = []
    for step in range(steps):
        for half in range(2):
            (loss_of(model, 2 * step + half) / 2).backward()
        for name, mask in (masks or {}).items():
            model.get_parameter(name).grad.mul_(mask)
        norms.append(clip(model))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad() if step % 2 else model.zero_grad()
    return norms


CLIPS = {
    "by norm": lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    "by value": lambda model: torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_loop_with_clipping_accumulation_and_schedule_equals_a_dense_loop_with_masked_gradients(small_model, kind, clip):
    options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 1e-2, "weight_decay": 0.0}
    dense = copy.deepcopy(small_model)
    ticket = mth.attach(small_model, sparsity=97, mask_seed=3)
    masks = masks_of(ticket)
    ours, theirs = ticket.optimizer(kind, **options), kind(dense.parameters(), **options)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in (ours, theirs)]
    norms = train(small_model, ours, schedules[0], CLIPS[clip])
    expected = train(dense, theirs, schedules[1], CLIPS[clip], masks)
    if clip == "by norm":
        assert min(expected) > 0.1  # so it clips
        torch.testing.assert_close(norms, expected, rtol=1e-5, atol=1e-6)
    for name in masks:
        torch.testing.assert_close(small_model.get_parameter(name), dense.get_parameter(name), rtol=1e-4, atol=2e-5)
    sizes = [value.numel() for value in ours.state[ticket.values].values() if value.dim()]
    assert set(sizes) == {ticket.active_parameters} and list(ours.state) == [ticket.values]


def test_the_optimizer_of_a_foreign_loop_over_all_parameters_trains_the_ticket_alone(small_model):
    """A loop may build its optimizer from `model.parameters()`. Weight decay does not reach frozen entries."""
    before, ticket = weights(small_model), mth.attach(small_model, sparsity=97)
    optimizer = torch.optim.AdamW(small_model.parameters(), lr=1e-2, weight_decay=0.5)
    for seed in range(2):
        optimizer.zero_grad()
        loss_of(small_model, seed).backward()
        optimizer.step()
    assert_only_active_entries_moved(small_model, before, masks_of(ticket))
    assert list(optimizer.state) == [ticket.values]


def test_no_dense_gradient_is_left_after_backward(small_model):
    ticket = mth.attach(small_model, sparsity=97)
    loss_of(small_model, 0).backward()
    assert [name for name, p in small_model.named_parameters() if p.grad is not None] == ["mth_ticket.values"]
    assert ticket.values.grad.norm() > 0


def test_a_closure_finds_the_values_of_each_of_its_calls_in_the_model(small_model):
    """LBFGS calls it several times a step. Its line search would diverge if the model kept the first values."""
    ticket = mth.attach(small_model, sparsity=97)
    optimizer = ticket.optimizer(torch.optim.LBFGS, lr=1, max_iter=4, line_search_fn="strong_wolfe")
    losses = []

    def closure():
        assert torch.equal(ticket._ticket.read(), ticket.values.detach())
        optimizer.zero_grad()
        loss = loss_of(small_model, 0)
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    assert len(set(losses)) > 2
    assert loss_of(small_model, 0).item() == pytest.approx(min(losses), rel=1e-3)


def test_a_grad_scaler_skips_a_step_that_overflows_and_takes_the_others(small_model):
    before, ticket = weights(small_model), mth.attach(small_model, sparsity=97)
    optimizer, scaler = ticket.optimizer(torch.optim.AdamW, lr=1e-2), torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(factor):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(small_model, 0)
        scaler.scale(loss * factor).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(small_model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return norm

    assert not torch.isfinite(step(torch.inf))
    assert scaler.get_scale() == 512.0 and all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())
    assert 0 < step(1.0) < 100
    assert_only_active_entries_moved(small_model, before, masks_of(ticket))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(small_model, reentrant):
    ticket = mth.attach(small_model, sparsity=97)
    loss_of(small_model, 0).backward()
    expected = ticket.values.grad.clone()
    small_model.zero_grad()
    small_model.train()
    small_model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    small_model.enable_input_require_grads()
    loss_of(small_model, 0).backward()
    torch.testing.assert_close(ticket.values.grad, expected)


def test_a_compiled_model_trains_the_same():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 32), torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 50))
    ids = torch.randint(50, (40,))
    before, compiled = weights(model), torch.compile(model, backend="aot_eager")
    ticket = mth.attach(compiled, sparsity=90)

    def loss(which):
        return torch.nn.functional.cross_entropy(which(ids), ids.flip(0))

    loss(model).backward()
    expected = ticket.values.grad.clone()
    optimizer = ticket.optimizer(torch.optim.SGD, lr=1.0)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        found = loss(compiled)
        found.backward()
        if not losses:
            torch.testing.assert_close(ticket.values.grad, expected)
        optimizer.step()
        losses.append(found.item())
    assert losses[0] > losses[1] > losses[2] and losses[2] == pytest.approx(loss(model).item(), rel=0.05)
    assert_only_active_entries_moved(model, before, masks_of(ticket), 0.5)


def test_state_dict_and_saving_know_nothing_of_the_ticket(small_model, tmp_path):
    keys, shape = set(small_model.state_dict()), small_model.dtype
    ticket = mth.attach(small_model.bfloat16(), sparsity=97)
    assert set(small_model.state_dict()) == keys and shape is torch.float32 and small_model.dtype is torch.bfloat16
    small_model.save_pretrained(tmp_path)
    again = type(small_model).from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in small_model.state_dict().items())
    small_model.load_state_dict({name: tensor + 1 for name, tensor in small_model.state_dict().items()})
    assert torch.equal(ticket.values.detach(), ticket._ticket.read())  # the ticket trains what was loaded
    with pytest.raises(UserError, match="leave assign out"):
        small_model.load_state_dict(again.state_dict(), assign=True)


def test_a_bf16_run_resumes_with_the_same_bits(small_model):
    """Its fp32 values are in the optimizer's state. The weights alone, which loops load first, hold them rounded."""
    model = small_model.bfloat16()
    other = copy.deepcopy(model)
    ticket, again = mth.attach(model, sparsity=97), mth.attach(other, sparsity=97)
    optimizers = [each.optimizer(torch.optim.AdamW, lr=1e-4) for each in (ticket, again)]

    def steps(which, seeds):
        for seed in seeds:
            optimizers[which].zero_grad()
            loss_of((model, other)[which], seed).backward()
            optimizers[which].step()

    steps(0, range(3))
    values = ticket.values.detach().clone()
    model.load_state_dict(model.state_dict())  # rounds nothing
    assert torch.equal(ticket.values.detach(), values) and not torch.equal(values, ticket._ticket.read())
    state = copy.deepcopy(optimizers[0].state_dict())
    other.load_state_dict(model.state_dict())
    optimizers[1].load_state_dict(state)
    steps(0, range(3, 5))
    steps(1, range(3, 5))
    assert torch.equal(ticket.values, again.values)
    wrong = mth.attach(copy.deepcopy(model), sparsity=97, mask_seed=1)
    assert len(weights(model)) and wrong._model() is None
    with pytest.raises(UserError, match="another ticket"):
        optimizers[1].load_state_dict(state | {"mth_ticket": state["mth_ticket"] | {"mask_sha256": "0" * 64}})


def test_casting_the_model_keeps_the_values_in_fp32(small_model):
    ticket = mth.attach(small_model, sparsity=97)
    values = ticket.values
    start = values.detach().clone()
    small_model.to(torch.bfloat16)
    assert ticket.values is values and values.dtype is torch.float32 and torch.equal(values.detach(), start)
    optimizer = ticket.optimizer(torch.optim.SGD, lr=1e-6)
    loss_of(small_model, 0).backward()
    optimizer.step()
    assert not torch.equal(values.detach(), start) and values.dtype is torch.float32


def test_off_merge_and_detach(small_model):
    before, ticket = weights(small_model), mth.attach(small_model, sparsity=97)
    optimizer = ticket.optimizer(torch.optim.SGD, lr=0.1)
    loss_of(small_model, 0).backward()
    optimizer.step()
    after = weights(small_model)
    with ticket.off() as model:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, after[name]) for name, tensor in small_model.state_dict().items())

    assert ticket.merge() is small_model
    assert all(torch.equal(tensor, after[name]) for name, tensor in small_model.state_dict().items())
    assert all(parameter.requires_grad for parameter in small_model.parameters()) and not hasattr(small_model, "mth_ticket")
    ticket.values.data.fill_(7)
    optimizer.step()  # of a ticket that is gone: does not reach the model
    assert all(torch.equal(tensor, after[name]) for name, tensor in small_model.state_dict().items())
    for method in (ticket.merge, ticket.detach, ticket.off().__enter__, lambda: ticket.optimizer(torch.optim.SGD)):
        with pytest.raises(UserError, match="no longer on its model"):
            method()

    second = mth.attach(small_model, sparsity=97, mask_seed=1)
    second.values.data.add_(1)
    second._ticket.write()
    assert second.detach() is small_model
    assert all(torch.equal(tensor, after[name]) for name, tensor in small_model.state_dict().items())


def test_nothing_is_kept_alive(small_model):
    from torch.optim import optimizer as torch_optimizer

    model = copy.deepcopy(small_model)
    gc.collect()
    hooks = len(torch_optimizer._global_optimizer_post_hooks)
    ticket = mth.attach(model, sparsity=97)
    optimizer = ticket.optimizer(torch.optim.SGD, lr=0.1)
    loss_of(model, 0).backward()
    optimizer.step()
    gone = [weakref.ref(each) for each in (model, ticket, ticket._ticket, model.lm_head.weight)]
    del model, ticket, optimizer
    gc.collect()
    assert [each() for each in gone] == [None] * 4
    assert len(torch_optimizer._global_optimizer_post_hooks) == hooks


def test_the_ticket_lives_as_long_as_the_model(small_model):
    """Nobody has to keep it: a loop that gets the model alone would train all of it otherwise."""
    mth.attach(small_model, sparsity=97)
    gc.collect()
    loss_of(small_model, 0).backward()
    assert small_model.mth_ticket.values.grad.norm() > 0


def test_a_copy_of_the_model_has_no_ticket(small_model):
    ticket = mth.attach(small_model, sparsity=97)
    for again in (copy.deepcopy(small_model), pickle.loads(pickle.dumps(small_model))):
        assert again.mth_ticket is None
        other = mth.attach(again, sparsity=97)
        assert other.mask_sha256 == ticket.mask_sha256 and other.values is not ticket.values


def test_the_repr_says_what_it_is(small_model):
    ticket = mth.attach(small_model, sparsity=97, mask_seed=5)
    k = ticket.active_parameters
    text = repr(ticket)
    assert f"{k:,} of {sum(p.numel() for p in ticket._ticket.parameters.values()):,} parameters" in text
    assert "mask random, 97 %, seed 5" in text and ticket.mask_sha256[:12] in text
    assert ticket.nbytes == 16 * k and f"{16 * k:,} bytes" in text
    assert text in repr(small_model)
