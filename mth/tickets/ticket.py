"""The ticket: one flat fp32 vector with the master copy of a model's active entries."""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from mth.foundations.errors import require
from mth.tickets.indices import Indices, mask_sha256
from mth.tickets.launches import KEPT_TABLES, Table, Waiting, move, tables_of
from mth.tickets.trial import moves_work

OWNER = "_ticket"  # attribute of a parameter: weak reference to the ticket that takes its gradients


class Ticket:
    """The trainable part of a model: the flat indices of each tensor's active entries, and the values of all of them in one fp32 vector.

    A model has one ticket at a time. It is released by `detach()`, or when the last reference to the ticket goes; then the model trains
    what it trained before. Raises UserError if the model has a ticket already.

    parameters: name -> parameter of the model, tied ones once. indices: name -> sorted flat indices, or None for every entry.

    `values` is an nn.Parameter [K] for any torch.optim class. Backward gathers its gradient tensor by tensor, on a GPU a few at a time, so
    the model's dense gradient never exists as a whole, and a tensor without active entries gets no gradient. Entries outside the ticket
    cannot change: nothing writes to them. `sampled` names the tensors whose gradient mth.tickets.sampled_gradients computes at the active
    entries only. `base_sha256` identifies the model that the ticket was drawn from, by its values at the active entries.

    dense_norm: keep the dense gradients until `finish_gradient`, which needs them for the norm over the whole model. This costs the memory
    of one full gradient in fp32, and computes gradients of tensors without active entries too. Micro-batches add up in fp32, whatever the
    model's dtype.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], indices: Indices, dense_norm: bool = False) -> None:
        device = next(iter(parameters.values())).device
        self.parameters = dict(parameters)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self.mask_sha256 = mask_sha256(self.shapes, indices)
        self.indices = {name: None if index is None else torch.from_numpy(index).to(device) for name, index in indices.items()}
        self.dense_norm = dense_norm
        self.dense: dict[str, torch.Tensor] = {}  # dense_norm: sums of the gradients of parameters that are not fp32
        self.sampled: frozenset[str] = frozenset()
        self.patterns: dict[tuple[str, bool], Any] = {}  # kept by mth.tickets.sampled_gradients from update to update
        self.few_launches = moves_work(device)  # kernels of mth.tickets.launches move the entries
        self._tables: dict[tuple[Any, ...], list[Table] | None] = {}
        self._waiting: weakref.WeakValueDictionary[int, Waiting] = weakref.WeakValueDictionary()  # by backward, which keeps them alive
        self.slices: dict[str, slice] = {}
        start = 0
        for name, index in self.indices.items():
            count = parameters[name].numel() if index is None else index.numel()
            self.slices[name] = slice(start, start + count)
            start += count
        self.values = nn.Parameter(torch.empty(start, dtype=torch.float32, device=device))
        self.values.data.copy_(self.read())
        self.base_sha256 = hashlib.sha256(self.values.data.cpu().numpy().data.cast("B")).hexdigest()
        self.values.grad = torch.zeros_like(self.values)
        self._attach()

    @property
    def total_parameters(self) -> int:
        """Number of entries of the whole model, frozen ones included."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def active_parameters(self) -> int:
        """K, the number of active entries."""
        return self.values.numel()

    @torch.no_grad()
    def read(self) -> torch.Tensor:
        """The active entries as the model holds them now, fp32 [K]."""
        tables = self._tables_of(self.parameters)
        if tables is not None:
            flat = torch.empty_like(self.values.data)
            move("read", tables, flat)
            return flat
        return torch.cat([self._take(name, self.parameters[name].data).float() for name in self.slices])

    @torch.no_grad()
    def write(self, values: torch.Tensor | None = None, into: Mapping[str, torch.Tensor] | None = None) -> None:
        """Copy `values` [K] (default: the ticket's own) to the model, or to `into`, tensors of the same names and shapes."""
        values = self.values.data if values is None else values
        targets = self.parameters if into is None else into
        tables = self._tables_of(targets)
        if tables is not None:
            move("write", tables, values.contiguous())
            return
        for name, place in self.slices.items():
            target = targets[name].data.view(-1)
            piece = values[place].to(target.dtype)
            index = self.indices[name]
            if index is None:
                target.copy_(piece)
            elif index.numel():
                target[index] = piece

    @contextmanager
    def swapped(self, values: torch.Tensor) -> Iterator[None]:
        """Within, the model has other values [K] at the active entries: a reference policy without a second copy of the model."""
        self.write(values)
        try:
            yield
        finally:
            self.write()

    def zero_gradient(self) -> None:
        """Clear the flat gradient in place."""
        assert self.values.grad is not None
        self.values.grad.zero_()
        self.dense.clear()

    @torch.no_grad()
    def to_device(self, device: torch.device) -> None:
        """Follow a model that has moved: values, their gradient and the indices go to the device. The values stay the same parameter."""
        self.values.data = self.values.data.to(device)
        if self.values.grad is not None:
            self.values.grad = self.values.grad.to(device)
        self.indices = {name: None if index is None else index.to(device) for name, index in self.indices.items()}
        self.patterns.clear()
        self._tables.clear()
        self.few_launches = moves_work(device)

    @torch.no_grad()
    def finish_gradient(self) -> torch.Tensor:
        """Complete the flat gradient after the last backward. Returns the norm that clipping uses, a scalar on the device."""
        assert self.values.grad is not None
        if not self.dense_norm:
            return self.values.grad.norm()
        squares, gradients = [], {}
        for name, parameter in self.parameters.items():
            gradient = self.dense.pop(name, parameter.grad)
            if gradient is not None:
                squares.append(torch.linalg.vector_norm(gradient, dtype=torch.float32) ** 2)
                gradients[name], parameter.grad = gradient, None
        self._add(gradients)
        return torch.stack(squares).sum().sqrt()

    def memory(self, optimizer: torch.optim.Optimizer) -> dict[str, int]:
        """Allocated bytes per part: values, gradient, index, moments."""
        assert self.values.grad is not None
        state = optimizer.state.get(self.values, {})
        moments = [t for t in state.values() if isinstance(t, torch.Tensor) and t.numel() == self.values.numel()]
        return {
            "values": _bytes(self.values),
            "gradient": _bytes(self.values.grad),
            "index": sum(_bytes(index) for index in self.indices.values() if index is not None),
            "moments": sum(map(_bytes, moments)),
        }

    def _take(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        index = self.indices[name]
        return tensor.reshape(-1) if index is None else tensor.reshape(-1)[index]

    def _gather(self, name: str, parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:  # autograd calls the hook even if a function returned no gradient
            return
        backward = torch._C._current_graph_task_id() if self.few_launches else -1
        if backward < 0:
            self._add({name: gradient})
            return
        waiting = self._waiting.get(backward)
        if waiting is None:
            waiting = self._waiting[backward] = Waiting()
            torch.autograd.Variable._execution_engine.queue_callback(partial(_add_waiting, weakref.ref(self), waiting))
        waiting.add(name, gradient)
        if waiting.enough:
            self._add(waiting.take())

    @torch.no_grad()
    def _add(self, gradients: dict[str, torch.Tensor]) -> None:
        """Add dense gradients at the active entries to the flat gradient."""
        if self.values.grad is None:  # a foreign loop has cleared it
            self.values.grad = torch.zeros_like(self.values)
        if self.few_launches:
            whole = {name: gradient.contiguous() for name, gradient in gradients.items()}
            move("add", tables_of(whole, self.indices, self.slices), self.values.grad)
            return
        for name, gradient in gradients.items():
            self.values.grad[self.slices[name]] += self._take(name, gradient)

    def _add_up(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            return
        if name in self.dense:
            self.dense[name] += parameter.grad
        else:
            self.dense[name] = parameter.grad.float()
        parameter.grad = None

    def _tables_of(self, tensors: Mapping[str, torch.Tensor]) -> list[Table] | None:
        """Tables of these tensors, or None where torch moves the entries."""
        if not self.few_launches:
            return None
        used = {name: tensors[name] for name in self.slices}
        places = tuple((tensor.data_ptr(), tensor.dtype, tensor.is_contiguous()) for tensor in used.values())
        if places not in self._tables:
            fit = all(tensor.is_contiguous() and tensor.device == self.values.device for tensor in used.values())
            if len(self._tables) == KEPT_TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[places] = tables_of(used, self.indices, self.slices) if fit else None
        return self._tables[places]

    def _attach(self) -> None:
        """Gather and free each gradient as soon as autograd has it. Tensors without active entries take no part in backward.

        The model's hooks know the ticket by a weak reference: autograd keeps hooks where the garbage collector cannot see a cycle.
        """
        owner = _Owner(self)
        require(
            attached_ticket(self.parameters.values()) is None,
            "the model has a ticket, which would lose its gradients to a second one; call its detach() first",
        )
        before = {name: parameter.requires_grad for name, parameter in self.parameters.items()}
        hooks = []
        for name, parameter in self.parameters.items():
            place = self.slices[name]
            setattr(parameter, OWNER, owner)
            parameter.requires_grad_(self.dense_norm or place.stop > place.start)
            take = Ticket._add_up if self.dense_norm else Ticket._gather
            if parameter.requires_grad and not (self.dense_norm and parameter.dtype == torch.float32):
                hooks.append(parameter.register_post_accumulate_grad_hook(partial(_hand_over, owner, take, name)))
        self.detach = weakref.finalize(self, _let_go, self.parameters, before, hooks)
        self.detach.atexit = False


class _Owner(weakref.ref):
    """A weak reference to a ticket, of which a copy of the model has nothing: `pickle` and `torch.save` make None of it."""

    def __reduce__(self) -> Any:
        return type(None), ()


def attached_ticket(parameters: Iterable[nn.Parameter]) -> Ticket | None:
    """The ticket that takes the gradients of one of these parameters, or None."""
    owners = [getattr(parameter, OWNER, None) for parameter in parameters]
    tickets = [owner() for owner in owners if owner is not None]
    return next((ticket for ticket in tickets if ticket is not None), None)


def _hand_over(owner: "weakref.ref[Ticket]", take: Callable[[Ticket, str, nn.Parameter], None], name: str, parameter: nn.Parameter) -> None:
    ticket = owner()
    if ticket is not None:
        take(ticket, name, parameter)


def _add_waiting(owner: "weakref.ref[Ticket]", waiting: Waiting) -> None:
    """At the end of a backward: add the gradients that still wait."""
    ticket = owner()
    if ticket is not None:
        ticket._add(waiting.take())


def _let_go(parameters: Mapping[str, nn.Parameter], before: Mapping[str, bool], hooks: list[Any]) -> None:
    """Take the hooks off a model and train again what was trained before the ticket. The values stay as they are."""
    for hook in hooks:
        hook.remove()
    for name, parameter in parameters.items():
        if hasattr(parameter, OWNER):
            delattr(parameter, OWNER)
        parameter.requires_grad_(before[name])


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
