"""Weight gradients computed at a ticket's active entries only: an alternative to dense gradients that are gathered and freed.

The gradient of a linear layer is dW = dY^T X. At the active entries it is one dot product over the tokens per entry, a sampled dense-dense
product, which `torch.sparse.sampled_addmm` or on a GPU a kernel adds to the flat gradient in place. Time and memory grow with the number of
active entries.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from mth.tickets.patterns import CompactPattern, compact, gradient_pattern
from mth.tickets.products import add_products, transposed
from mth.tickets.ticket import Ticket

TILE_ELEMENTS = 2**19  # fp32 numbers of a layer's input per tile of tokens: a tile fits into a core's second-level cache
MIN_TILE_TOKENS = 128  # with fewer tokens per tile the calls cost more than the products
CACHE_LINE_BYTES = 64
ALIGNED_TOKENS = 16  # a GPU reads features fast if their length in memory is a multiple of this


class Active(NamedTuple):
    """Where a linear layer's gradient goes on a GPU: the ticket, and the tensor's name in it."""

    ticket: Ticket
    name: str


@contextmanager
def sampled_gradients(model: nn.Module, ticket: Ticket) -> Iterator[None]:
    """Within, backward computes the gradients of the tensors in `ticket.sampled` at their active entries; other gradients stay dense.

    The model's modules are patched within the context only; outside they are torch's own. On a CPU this needs about 4 bytes per active
    entry and 12 per row or column of these tensors beside the ticket, on a GPU a layer's operands once more. Works with gradient
    accumulation, and with activation checkpointing as long as backward runs within the context.
    """
    weights = [ticket.parameters[name] for name in ticket.sampled]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        with patched_modules(model, ticket, ticket.sampled):
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextmanager
def patched_modules(model: nn.Module, ticket: Ticket, names: Iterable[str]) -> Iterator[None]:
    """Within, the linear and embedding modules of these tensors add sampled gradients to the flat gradient in backward."""
    modules = modules_by_weight(model, ticket)
    anchor = torch.zeros((), requires_grad=True)  # makes autograd call backward even if no input needs a gradient
    cache = _TransposeCache()
    patched: list[nn.Module] = []
    try:
        for name in names:
            for module in modules[name]:
                if isinstance(module, nn.Embedding):
                    forward: Any = partial(_embedding, module, kept_pattern(ticket, name, False).pattern, anchor)
                else:
                    active = kept_pattern(ticket, name, True) if module.weight.device.type == "cpu" else Active(ticket, name)
                    forward = partial(_linear, module, active, anchor, cache)
                module.forward = forward
                patched.append(module)
        yield
    finally:
        for module in patched:
            del module.forward


def kept_pattern(ticket: Ticket, name: str, is_compact: bool) -> CompactPattern:
    """The pattern of a tensor, for a linear layer compact, made once per ticket. Made anew if the flat gradient has moved in memory."""
    assert ticket.values.grad is not None
    place = ticket.values.grad.data_ptr()
    known = ticket.patterns.get((name, is_compact))
    if known is None or known[0] != place:
        pattern = gradient_pattern(ticket, name)
        known = ticket.patterns[name, is_compact] = place, compact(pattern) if is_compact else CompactPattern(pattern, None, None)
    return known[1]


def modules_by_weight(model: nn.Module, ticket: Ticket) -> dict[str, list[nn.Module]]:
    """The standard linear and embedding modules that use each tensor as their weight; two if embedding and LM head are tied."""
    names = {id(parameter): name for name, parameter in ticket.parameters.items()}
    modules: dict[str, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        if name is not None and is_standard(module):
            modules[name].append(module)
    return modules


def is_standard(module: nn.Module) -> bool:
    """Returns True for a linear or embedding module that computes what nn.Linear or nn.Embedding computes."""
    if isinstance(module, nn.Embedding):
        special = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        return type(module).forward is nn.Embedding.forward and not special
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _linear(module: Any, active: CompactPattern | Active, anchor: torch.Tensor, cache: Any, input: torch.Tensor) -> torch.Tensor:
    return _SampledLinear.apply(input, module.weight, module.bias, active, anchor, cache)


def _embedding(module: Any, pattern: torch.Tensor, anchor: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    return _SampledEmbedding.apply(input, module.weight, module.padding_idx, pattern, anchor)


class _SampledLinear(torch.autograd.Function):
    """y = x W^T + b. Backward adds dW at the active entries to the flat gradient and returns no gradient for W.

    A product over tokens is fastest if both operands are feature-major, with the tokens of one feature side by side in memory. A layer that
    widens its input more than twofold (MLP and head) therefore writes a feature-major output, with the same values and other strides.
    Elementwise functions keep the order, and the next layer returns its input gradient in it, so most transposes are avoided. The query
    projection is narrower and stays token-major, as attention needs it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, active: Any, anchor: torch.Tensor, cache: Any
    ) -> Any:
        flat = x.reshape(-1, weight.shape[1])
        columns = active.columns if isinstance(active, CompactPattern) else None
        ctx.save_for_backward(x if columns is None else flat.t().index_select(0, columns), weight)
        ctx.active, ctx.cache, ctx.shape, ctx.feature_major = active, cache, x.shape, is_feature_major(flat)
        aligned = x.device.type == "cpu" or flat.shape[0] % ALIGNED_TOKENS == 0
        if not aligned or weight.shape[0] <= 2 * weight.shape[1]:
            return functional.linear(x, weight, bias)
        y = padded_matmul(weight, flat.t(), bias)
        return y.t().view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dy = grads[0].reshape(-1, weight.shape[0])  # [T, out]
        if isinstance(ctx.active, Active):
            add_at_active_entries(ctx.active, dy, ctx.cache.feature_major(x.reshape(-1, weight.shape[1])))
        else:
            xt = ctx.cache.feature_major(x.reshape(-1, weight.shape[1])) if ctx.active.columns is None else x.float()
            add_sampled_product(ctx.active, dy, xt)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = padded_matmul(weight.t(), dy.t()).t() if ctx.feature_major else dy @ weight
            dx = dx.view(ctx.shape)
        db = dy.sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, db, None, None, None


class _SampledEmbedding(torch.autograd.Function):
    """Rows of W by token id. Backward adds dW at the active entries of the rows that occur, and returns no gradient for W."""

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, weight: torch.Tensor, padding_idx: int | None, pattern: torch.Tensor, anchor: torch.Tensor
    ) -> Any:
        ctx.ids, ctx.padding_idx, ctx.pattern = ids, padding_idx, pattern
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        dy = grads[0].reshape(-1, grads[0].shape[-1]).float()
        used, inverse = ctx.ids.reshape(-1).unique(return_inverse=True)
        rows = dy.new_zeros(used.numel(), dy.shape[1]).index_add_(0, inverse, dy)  # gradient of each row that occurs
        if ctx.padding_idx is not None:
            rows[used == ctx.padding_idx] = 0
        starts = ctx.pattern.crow_indices()
        first, counts = starts[used], starts[used + 1] - starts[used]
        row = torch.arange(used.numel(), device=used.device).repeat_interleave(counts)
        entry = torch.arange(row.numel(), device=used.device) + (first - counts.cumsum(0) + counts)[row]
        ctx.pattern.values()[entry] += rows[row, ctx.pattern.col_indices()[entry]]
        return None, None, None, None, None


def add_sampled_product(active: CompactPattern, dy: torch.Tensor, xt: torch.Tensor) -> None:
    """Add dy^T x at the active entries to the pattern's values, in fp32.

    dy [T, out] of any dtype. xt: the input transposed, fp32 [columns of the pattern, T].
    This goes tile by tile over the tokens: x is read at random, which is cheap while the tile stays in the cache.
    """
    tokens = max(MIN_TILE_TOKENS, TILE_ELEMENTS // xt.shape[0])
    for left, right in zip(dy.split(tokens), xt.split(tokens, dim=1), strict=True):
        rows = left.t() if active.rows is None else left.t().index_select(0, active.rows)
        torch.sparse.sampled_addmm(active.pattern, rows.float(), right.t(), beta=1.0, out=active.pattern)


def add_at_active_entries(active: Active, dy: torch.Tensor, xt: torch.Tensor) -> None:
    """Add dy^T x at the active entries to the flat gradient, on a GPU. dy [T, out]. xt: the input transposed [in, T]."""
    ticket, index = active.ticket, active.ticket.indices[active.name]
    assert ticket.values.grad is not None and index is not None
    dyt = dy.t() if is_feature_major(dy) else transposed(dy)
    add_products(ticket.values.grad[ticket.slices[active.name]], index, dyt, xt)


def padded_matmul(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a [M, N] times b [N, T] plus bias [M], on a CPU with rows padded in memory to an odd number of cache lines.

    A product is up to 50 % slower if rows start inside a cache line, and 5 % slower if a row's length is a power of two ([32000, 896] times
    [896, 508] and [896, 512], fp32, two threads).
    """
    rows, columns = a.shape[0], b.shape[1]
    width = columns
    if a.device.type == "cpu":
        line = CACHE_LINE_BYTES // a.element_size()
        width = line * (-(-columns // line) | 1)
    out = a.new_empty(rows, width)[:, :columns]
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias.unsqueeze(1), a, b, out=out)


def is_feature_major(x: torch.Tensor) -> bool:
    """Returns True if the tokens of each feature of a matrix [T, F] are side by side in memory."""
    return x.stride(0) == 1 and x.shape[0] > 1


class _TransposeCache:
    """The last layer input, transposed. Layers with the same input (q, k and v; gate and up) run backward one after another."""

    def __init__(self) -> None:
        self.last = self.transposed = torch.empty(0)

    def feature_major(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, F] as [F, T], on a CPU in fp32, on a GPU in its own dtype."""
        on_cpu = x.device.type == "cpu"
        if is_feature_major(x):
            return x.t().float() if on_cpu else x.t()
        same = x.data_ptr() == self.last.data_ptr() and x.shape == self.last.shape and x._version == self.last._version
        if not same:
            self.last, self.transposed = x, x.float().t().contiguous() if on_cpu else transposed(x)
        return self.transposed
