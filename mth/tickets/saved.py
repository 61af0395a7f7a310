"""A ticket in a folder: `ticket.json` (recipe, fingerprints), `ticket.safetensors` (K values) and a model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import atomic, digest, read_json, write_json
from mth.tickets.indices import Indices, Weights
from mth.tickets.recipes import CHOSEN, draw_family, sorted_indices
from mth.tickets.ticket import Ticket

FORMAT = "mth-ticket-folder-1"
HEADER, TENSORS = "ticket.json", "ticket.safetensors"
INDEX = "index."  # before the name of a tensor, where no recipe draws its indices
FINGERPRINT = ("total_parameters", "active_parameters", "mask_sha256", "base_sha256")


@dataclass(frozen=True)
class SavedTicket:
    """What a file holds of a ticket. facts: the values of FINGERPRINT. indices: of the tensors that have active entries, or None to draw them."""

    source: Path
    recipe: dict[str, Any]
    facts: Mapping[str, Any]
    values: torch.Tensor
    indices: dict[str, torch.Tensor] | None = None

    def draw(self, parameters: Mapping[str, torch.Tensor], weights: Weights) -> Indices:
        """The indices in this model. Raises UserError if it is another model."""
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        total = sum(parameter.numel() for parameter in parameters.values())
        refuse_difference(self, "total_parameters", total)
        if self.indices is None:
            return draw_family(self.recipe, shapes, weights)
        for name in self.indices:
            require(name in shapes, f"ticket {self.source} belongs to another model: this one has no tensor {name}")
        return {name: sorted_indices(name, shape, self.indices.get(name, ())) for name, shape in shapes.items()}


def refuse_other(saved: SavedTicket, ticket: Ticket) -> None:
    """Raise UserError if the saved values belong to another mask or base model than a ticket that has just been attached."""
    for key in FINGERPRINT:
        refuse_difference(saved, key, getattr(ticket, key))


def refuse_difference(saved: SavedTicket, key: str, have: Any) -> None:
    what = "mask" if key in ("active_parameters", "mask_sha256") else "base model"
    hint = "; load the model that it was trained from, in the same dtype and without later changes" if key == "base_sha256" else ""
    require(
        saved.facts.get(key) == have, f"ticket {saved.source} belongs to another {what}: {key} is {saved.facts.get(key)}, here {have}{hint}"
    )


def header_of(ticket: Ticket, recipe: dict[str, Any], base_model: str, results: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """What `ticket.json` and the model card say of a ticket."""
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in ticket.parameters.values()})
    facts = {key: getattr(ticket, key) for key in FINGERPRINT}
    head = {"format": FORMAT, "base_model": public_name(base_model), "dtype": " ".join(dtypes), "mask": recipe}
    return {**head, **facts, "results": results, "training": training}


def write_ticket(folder: Path, ticket: Ticket, header: dict[str, Any]) -> None:
    """Write values and header. A ticket that is there already is replaced. Raises OSError or SafetensorError if that fails."""
    tensors = {"values": ticket.values.detach()}
    if header["mask"]["family"] in CHOSEN:
        every = {name: torch.arange(ticket.parameters[name].numel()) for name, index in ticket.indices.items() if index is None}
        indices = {name: index for name, index in ticket.indices.items() if index is not None and index.numel()}
        tensors |= {f"{INDEX}{name}": index for name, index in {**every, **indices}.items()}
    with atomic(folder / TENSORS) as temporary:
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, temporary)
    write_json(folder / HEADER, header | {"values_file_sha256": digest(folder / TENSORS)})


def read_ticket(folder: Path) -> SavedTicket:
    """Read a ticket's folder. Raises UserError if it is damaged or was written by something else."""
    header, file = read_json(folder / HEADER), folder / TENSORS
    require(header.get("format") == FORMAT, f"{folder / HEADER}: format {header.get('format')}, expected {FORMAT}: not a ticket of mth?")
    try:
        right = digest(file) == header["values_file_sha256"]
        require(right, f"{file} is not the file that {HEADER} was written with; copy or save the ticket again")
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
        indices = {key.removeprefix(INDEX): tensor for key, tensor in tensors.items() if key.startswith(INDEX)}
        chosen = header["mask"]["family"] in CHOSEN
        return SavedTicket(folder, header["mask"], header, tensors["values"], indices if chosen else None)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"ticket {folder} is damaged or incomplete ({first_line(error)}); copy or save it again") from error


def is_ticket(folder: Path) -> bool:
    """Whether a folder holds a saved ticket."""
    return (folder / HEADER).is_file()


def public_name(base_model: str) -> str:
    """A base model's name for readers elsewhere: a hub id as it is, of a local path its last part only."""
    return Path(base_model).name if Path(base_model).exists() or base_model.startswith(("/", ".", "~")) else base_model
