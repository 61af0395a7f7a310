"""What an attached ticket does around the steps of a torch optimizer that holds its values, and with the optimizer's state.

The hooks know the ticket by a weak reference, so that they do not keep it alive.
"""

import weakref
from typing import Any

import torch

from mth.foundations.errors import require
from mth.tickets.ticket import Ticket

PLACE = "mth_ticket"  # name of the ticket among the model's modules, and of its key in the optimizer's state


def _holds(optimizer: torch.optim.Optimizer, ticket: Ticket) -> bool:
    return any(parameter is ticket.values for group in optimizer.param_groups for parameter in group["params"])


def before_step(owner: "weakref.ref[Ticket]", optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
    """A closure may be called several times in a step, each time with other values: it finds them in the model."""
    ticket = owner()
    if ticket is None or not _holds(optimizer, ticket):
        return None
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    require(
        not distributed or torch.distributed.get_world_size() == 1,
        "a ticket trains in one process: its gradient is not summed over processes; start one process per model",
    )
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return None

    def written() -> Any:
        ticket.write()
        return closure()

    return args[:1], {**kwargs, "closure": written}


def after_step(owner: "weakref.ref[Ticket]", optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    ticket = owner()
    if ticket is not None and _holds(optimizer, ticket):
        ticket.write()


def add_values(owner: "weakref.ref[Ticket]", optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    ticket = owner()
    if ticket is None:
        return state
    return state | {PLACE: {"mask_sha256": ticket.mask_sha256, "values": ticket.values.detach().clone()}}


def take_values(owner: "weakref.ref[Ticket]", optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    ticket, saved = owner(), state.get(PLACE)
    if ticket is not None and saved is not None:
        require(
            saved["mask_sha256"] == ticket.mask_sha256,
            f"the optimizer's state belongs to another ticket: its mask is {saved['mask_sha256'][:12]}, here {ticket.mask_sha256[:12]}",
        )
        ticket.values.data.copy_(saved["values"])
        ticket.write()
    return {key: value for key, value in state.items() if key != PLACE}


def remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
