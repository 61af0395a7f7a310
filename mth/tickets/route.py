"""Which tensors get a sampled gradient, and which a dense one."""

import math
from functools import partial

import torch
from torch import nn

from mth.config.choices import ClipNorm, WeightGradient
from mth.config.schema import OptimizerConfig
from mth.foundations.errors import first_line, require
from mth.tickets.sampled_gradients import modules_by_weight, patched_modules
from mth.tickets.ticket import Ticket
from mth.tickets.trial import products_work

# Costs relative to one multiply-add of a dense matrix product; two threads, benchmarks/weight_gradients.py.
ENTRY_COST = 12  # per active entry: its operands are read at random
TRANSPOSE_COST = 150  # per feature of either operand: it is transposed


def should_sample(shape: tuple[int, ...], count: int, config: OptimizerConfig, on_cpu: bool) -> bool:
    """Returns True if the configuration asks for a sampled gradient of a tensor with `count` active entries.

    `auto` samples where that is cheaper, and not on a GPU, where it was not measured yet. Clipping by the dense norm needs dense gradients.
    """
    how = config.weight_gradient
    if how is WeightGradient.dense or config.clip_norm is ClipNorm.dense or len(shape) != 2 or not 0 < count < math.prod(shape):
        return False
    return how is WeightGradient.sampled or (on_cpu and sampling_is_cheaper(shape[0], shape[1], count))


def sampling_is_cheaper(rows: int, columns: int, count: int) -> bool:
    """Returns True if sampling `count` entries of a [rows, columns] gradient is cheaper than the dense product. `auto` uses this on a CPU.

    The choice depends on shapes only, so repeating a run repeats the choice.
    """
    return ENTRY_COST * count + TRANSPOSE_COST * (min(rows, count) + min(columns, count)) < rows * columns


def choose_sampled(model: nn.Module, ticket: Ticket, config: OptimizerConfig) -> tuple[frozenset[str], list[str]]:
    """Names of the tensors that get a sampled gradient, and one line for each that should get one but cannot.

    A tensor qualifies if only standard nn.Linear and nn.Embedding modules use it. A trial pass of two tokens shows this: it computes
    sampled gradients while dense ones stay enabled, and any other use of the tensor sends a dense gradient. On a GPU the LM head, whose
    function is compiled there, and embeddings stay dense. Raises UserError if sampled gradients are asked for on a GPU without kernels.
    """
    on_cpu = ticket.values.device.type == "cpu"
    require(
        on_cpu or config.weight_gradient is not WeightGradient.sampled or products_work(ticket.values.device),
        "optimizer.weight_gradient=sampled needs Triton on a GPU; install triton, or leave the key at auto",
    )
    wanted = [
        name
        for name, index in ticket.indices.items()
        if index is not None and should_sample(ticket.shapes[name], index.numel(), config, on_cpu)
    ]
    modules = modules_by_weight(model, ticket)
    lines = [
        f"{name}: dense weight gradient, because its module is no plain nn.Linear or nn.Embedding" for name in wanted if name not in modules
    ]
    candidates = [name for name in wanted if name in modules]
    if not on_cpu:
        kernelless = {name for name in candidates if not all(_has_kernel(module, model) for module in modules[name])}
        lines += [f"{name}: dense weight gradient, because on a GPU it stays so for LM heads and embeddings" for name in sorted(kernelless)]
        candidates = [name for name in candidates if name not in kernelless]
    if not candidates:
        return frozenset(), lines
    try:
        used_elsewhere = _trial_pass(model, ticket, candidates)
    except RuntimeError as error:
        reason = f"all weight gradients are dense, because sampled ones fail in this model ({first_line(error)})"
        return frozenset(), [*lines, reason]
    lines += [f"{name}: dense weight gradient, because other modules than its own use it" for name in candidates if name in used_elsewhere]
    return frozenset(candidates) - used_elsewhere, lines


def _has_kernel(module: nn.Module, model: nn.Module) -> bool:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return isinstance(module, nn.Linear) and module is not head


def _trial_pass(model: nn.Module, ticket: Ticket, names: list[str]) -> set[str]:
    """Names of the tensors that receive a dense gradient although their own modules send sampled ones.

    Leaves all gradients cleared. Raises RuntimeError if sampled gradients do not work in this model.
    """
    dense: set[str] = set()

    def note(gradient: torch.Tensor | None, name: str) -> None:
        if gradient is not None:
            dense.add(name)

    hooks = [ticket.parameters[name].register_hook(partial(note, name=name)) for name in names]
    try:
        with patched_modules(model, ticket, names), torch.enable_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=ticket.values.device)
            model(input_ids=ids, use_cache=False).logits.float().square().sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        for name in names:
            ticket.parameters[name].grad = None
        ticket.zero_gradient()
    return dense
