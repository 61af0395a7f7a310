"""Weight gradients computed only at a ticket's active entries: the second door to the flat gradient, beside dense gradients gathered and freed.

dL/dW of a linear layer is dY^T X; at the active entries it is one dot product over the tokens each (a sampled dense-dense product), which
`torch.sparse.sampled_addmm` adds straight into the ticket's flat gradient. Cost and memory follow the number of active entries.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from mth.config import ClipNorm, OptimizerConfig, WeightGradient
from mth.tickets.ticket import Ticket

TILE = 2**19  # fp32 numbers of a layer's input held transposed at a time: they stay in a core's second-level cache
CACHE_LINE = 64  # bytes
LEAST_TOKENS = 128  # below, the calls cost more than the products
FEW = 0.75  # share of rows or columns below which only those with an active entry are read


def worth_sampling(rows: int, columns: int, count: int) -> bool:
    """Whether `count` entries of a [rows, columns] gradient cost less sampled than the whole gradient does: the rule of `auto` on a CPU.

    Per token a dense gradient costs rows * columns multiply-adds at the speed of a matrix product. A sampled one costs as much as 12 of
    them an entry, because it reads at random, and as much as 150 a number of both operands that an entry needs, which are transposed (two
    threads; benchmarks/weight_gradients.py). The choice depends on nothing but shapes, so that the same run has the same bits.
    """
    return 12 * count + 150 * (min(rows, count) + min(columns, count)) < rows * columns


def by_shape(shape: tuple[int, ...], count: int, config: OptimizerConfig, on_cpu: bool) -> bool:
    """Whether the gradient of a tensor with `count` active entries is to be sampled, as far as its shape tells.

    `auto` takes what `worth_sampling` says, on a GPU nothing. Clipping by the dense norm needs dense gradients.
    """
    how = config.weight_gradient
    if how is WeightGradient.dense or config.clip_norm is ClipNorm.dense or len(shape) != 2 or not 0 < count < math.prod(shape):
        return False
    return how is WeightGradient.sampled or (on_cpu and worth_sampling(shape[0], shape[1], count))


def choose_sampled(model: nn.Module, ticket: Ticket, config: OptimizerConfig) -> tuple[frozenset[str], list[str]]:
    """Names of the tensors whose gradient is to be sampled, and one line for each that was wished for and cannot.

    Only tensors qualify that nothing but plain nn.Linear and nn.Embedding modules use. A trial pass of two tokens, with sampled gradients and the
    dense door left open, shows it: whatever else uses a tensor sends a dense gradient.
    """
    on_cpu = ticket.values.device.type == "cpu"
    wished = [n for n, index in ticket.indices.items() if index is not None and by_shape(ticket.shapes[n], index.numel(), config, on_cpu)]
    users = users_of(model, ticket)
    lines = [
        f"{name}: dense weight gradient, because its module is no plain nn.Linear or nn.Embedding" for name in wished if name not in users
    ]
    plain = [name for name in wished if name in users]
    if not plain:
        return frozenset(), lines
    elsewhere: set[str] = set()

    def note(gradient: torch.Tensor | None, name: str) -> None:
        if gradient is not None:
            elsewhere.add(name)

    hooks = [ticket.parameters[name].register_hook(partial(note, name=name)) for name in plain]
    try:
        with _patched(model, ticket, plain), torch.enable_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=ticket.values.device)
            model(input_ids=ids, use_cache=False).logits.float().square().sum().backward()
    except RuntimeError as error:
        return frozenset(), [
            *lines,
            f"all weight gradients are dense, because sampled ones fail in this model ({str(error).splitlines()[0]})",
        ]
    finally:
        for hook in hooks:
            hook.remove()
        for name in plain:
            ticket.parameters[name].grad = None
        ticket.zero_gradient()
    lines += [f"{name}: dense weight gradient, because other modules than its own use it" for name in plain if name in elsewhere]
    return frozenset(plain) - elsewhere, lines


def users_of(model: nn.Module, ticket: Ticket) -> dict[str, list[nn.Module]]:
    """The plain linear and embedding modules of each tensor: two where embedding and LM head are tied."""
    names = {id(parameter): name for name, parameter in ticket.parameters.items()}
    users: dict[str, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        if name is not None and is_plain(module):
            users[name].append(module)
    return users


def is_plain(module: nn.Module) -> bool:
    """A linear or embedding module that computes what torch's own class does."""
    if isinstance(module, nn.Embedding):
        special = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        return type(module).forward is nn.Embedding.forward and not special
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


@contextmanager
def sampled_gradients(model: nn.Module, ticket: Ticket) -> Iterator[None]:
    """Within, backward adds the gradients of the tensors in `ticket.sampled` to the flat gradient directly; the others take the dense door.

    The modules are changed for the time of the context only: outside of it, and in copies, they are torch's own. Beside the ticket it holds
    about 4 bytes per active entry and 12 per row or column of these tensors. Works with gradient accumulation and with activation checkpointing (backward
    has to run within).
    """
    weights = [ticket.parameters[name] for name in ticket.sampled]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        with _patched(model, ticket, ticket.sampled):
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextmanager
def _patched(model: nn.Module, ticket: Ticket, names: Iterable[str]) -> Iterator[None]:
    """Within, the plain modules of these tensors compute their sampled gradient in backward."""
    users = users_of(model, ticket)
    anchor = torch.zeros((), requires_grad=True)  # makes autograd call backward where no input needs a gradient
    inputs = _Inputs()
    changed: list[nn.Module] = []
    try:
        for name in names:
            pattern = gradient_pattern(ticket, name)
            for module in users[name]:
                if isinstance(module, nn.Embedding):
                    forward: Any = partial(_embedding, module, pattern, anchor)
                else:
                    forward = partial(_linear, module, narrow(pattern), anchor, inputs)
                module.forward = forward
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def gradient_pattern(ticket: Ticket, name: str) -> torch.Tensor:
    """The active entries of a tensor as a sparse CSR matrix whose values ARE its piece of the ticket's flat gradient (shared memory)."""
    assert ticket.values.grad is not None
    index = ticket.indices[name]
    assert index is not None
    rows, columns = ticket.shapes[name]
    edges = torch.arange(rows + 1, dtype=torch.int64, device=index.device) * columns
    starts = torch.searchsorted(index, edges.to(index.dtype) if rows * columns < 2**31 else edges, out_int32=True)
    return _shared_csr(starts, (index % columns).int(), ticket.values.grad[ticket.slices[name]], (rows, columns))


class Narrow(NamedTuple):
    """The active entries of a tensor in a matrix of its rows and columns with these indices (int64, ascending), all of them where None."""

    pattern: torch.Tensor
    rows: torch.Tensor | None
    columns: torch.Tensor | None


def narrow(pattern: torch.Tensor) -> Narrow:
    """Without the rows, and without the columns, that have no active entry where these are many; the values stay shared memory.

    Of a very sparse tensor few numbers of each operand are needed, and few of the input have to be kept for backward.
    """
    starts, column, (height, width) = pattern.crow_indices(), pattern.col_indices(), pattern.shape
    rows = columns = None
    if occupied(height, column.numel()) < height:
        used = starts.diff() > 0
        rows = used.nonzero().squeeze(1)
        starts = torch.cat([starts[:-1][used], starts[-1:]])
    if occupied(width, column.numel()) < width:
        used = torch.zeros(width, dtype=torch.bool, device=column.device).index_fill_(0, column.long(), True)
        columns = used.nonzero().squeeze(1)
        column = (used.cumsum(0, dtype=torch.int32) - 1)[column]
    shape = (starts.numel() - 1, width if columns is None else columns.numel())
    return Narrow(_shared_csr(starts, column, pattern.values(), shape), rows, columns)


def occupied(size: int, count: int) -> float:
    """Of `size` rows or columns, those that `count` active entries at random places lie in, on average; all of them where they are most."""
    used = size * -math.expm1(count * math.log1p(-1 / size)) if size > 1 else size
    return used if used < FEW * size else size


def _shared_csr(starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _linear(module: Any, active: Narrow, anchor: torch.Tensor, inputs: Any, input: torch.Tensor) -> torch.Tensor:
    return _SampledLinear.apply(input, module.weight, module.bias, active, anchor, inputs)


def _embedding(module: Any, pattern: torch.Tensor, anchor: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    return _SampledEmbedding.apply(input, module.weight, module.padding_idx, pattern, anchor)


class _SampledLinear(torch.autograd.Function):
    """y = x W^T + b; backward adds dL/dW at the active entries to the pattern's values and returns no gradient for W.

    Products over tokens want both operands with the tokens of one feature side by side. On a CPU a layer that widens its input to more than
    twice (MLP and head, not the queries, which attention wants by token) therefore writes its output that way round (same values, other
    strides); elementwise functions keep the order, a layer behind them passes it back in its gradient, and most transposes are saved.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, active: Narrow, anchor: torch.Tensor, inputs: Any
    ) -> Any:
        flat = x.reshape(-1, weight.shape[1])
        ctx.save_for_backward(x if active.columns is None else flat.t().index_select(0, active.columns), weight)
        ctx.active, ctx.inputs, ctx.shape, ctx.by_feature = active, inputs, x.shape, by_feature(flat)
        if x.device.type != "cpu" or weight.shape[0] <= 2 * weight.shape[1]:
            return functional.linear(x, weight, bias)
        y = aligned_product(weight, flat.t(), bias)
        return y.t().view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = grads[0].reshape(-1, weight.shape[0])  # [T, out]
        add_product(ctx.active, dy, ctx.inputs.by_feature(x.reshape(-1, weight.shape[1])) if ctx.active.columns is None else x.float())
        dx = None
        if ctx.needs_input_grad[0]:
            dx = aligned_product(weight.t(), dy.t()).t() if ctx.by_feature else dy @ weight
            dx = dx.view(ctx.shape)
        db = dy.sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, db, None, None, None


def aligned_product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a [M, N] times b [N, T], plus bias [M] of each row, in memory whose rows are an odd number of cache lines long.

    Rows that begin amid a cache line cost a product up to a half more, rows of a power of two a twentieth ([32000, 896] times [896, 508]
    and [896, 512], fp32, two threads).
    """
    rows, columns = a.shape[0], b.shape[1]
    line = CACHE_LINE // a.element_size()
    lines = -(-columns // line) | 1
    out = a.new_empty(rows, lines * line)[:, :columns]
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias.unsqueeze(1), a, b, out=out)


def by_feature(x: torch.Tensor) -> bool:
    """Whether a matrix [T, F] lies in memory with the tokens of a feature side by side."""
    return x.stride(0) == 1 and x.shape[0] > 1


class _Inputs:
    """The last input of a layer, transposed: q, k and v have the same one, as have gate and up, and their gradients come one after another."""

    def __init__(self) -> None:
        self.last = self.transposed = torch.empty(0)

    def by_feature(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, F] of any dtype as fp32 [F, T]."""
        if by_feature(x) or x.device.type != "cpu":
            return x.t().float()
        same = x.data_ptr() == self.last.data_ptr() and x.shape == self.last.shape and x._version == self.last._version
        if not same:
            self.last, self.transposed = x, x.float().t().contiguous()
        return self.transposed


def add_product(active: Narrow, dy: torch.Tensor, xt: torch.Tensor) -> None:
    """values += (dy^T x) at the active entries; dy [T, out] of any dtype, x transposed [its columns, T], sums in fp32.

    On a CPU in tiles of tokens: x is read at random, and a tile that stays in the cache makes that cheap.
    """
    tokens = max(LEAST_TOKENS, TILE // xt.shape[0]) if xt.device.type == "cpu" else xt.shape[1]
    for left, right in zip(dy.split(tokens), xt.split(tokens, dim=1), strict=True):
        rows = left.t() if active.rows is None else left.t().index_select(0, active.rows)
        torch.sparse.sampled_addmm(active.pattern, rows.float(), right.t(), beta=1.0, out=active.pattern)


class _SampledEmbedding(torch.autograd.Function):
    """Rows of W by id; backward adds dL/dW at the active entries of the rows that occur, and returns no gradient for W."""

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, weight: torch.Tensor, padding_idx: int | None, pattern: torch.Tensor, anchor: torch.Tensor
    ) -> Any:
        ctx.ids, ctx.padding_idx, ctx.pattern = ids, padding_idx, pattern
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        dy = grads[0].reshape(-1, grads[0].shape[-1]).float()
        used, place = ctx.ids.reshape(-1).unique(return_inverse=True)
        rows = dy.new_zeros(used.numel(), dy.shape[1]).index_add_(0, place, dy)  # summed gradient of each row that occurs
        if ctx.padding_idx is not None:
            rows[used == ctx.padding_idx] = 0
        starts = ctx.pattern.crow_indices()
        first, counts = starts[used], starts[used + 1] - starts[used]
        row = torch.arange(used.numel(), device=used.device).repeat_interleave(counts)
        entry = torch.arange(row.numel(), device=used.device) + (first - counts.cumsum(0) + counts)[row]
        ctx.pattern.values()[entry] += rows[row, ctx.pattern.col_indices()[entry]]
        return None, None, None, None, None
