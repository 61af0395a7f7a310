"""A ticket as a SHiRA adapter, which PEFT loads: sparse additions to the weights of linear layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mth.foundations.errors import require
from mth.foundations.files import atomic, write_json
from mth.tickets.ticket import Ticket

ADAPTER, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # before the model's own names in an adapter's file


def write_adapter(folder: Path, model: nn.Module, ticket: Ticket, base_values: torch.Tensor, base_model: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`.

    PEFT gives each layer of shape [m, n] r (m + n) entries, with one r for all. So r is the least that holds every layer's active entries;
    what is left over repeats a layer's first active entry and adds 0 to it.
    Raises UserError if an active tensor is no weight of a linear layer, or if a layer has more active entries than SHiRA can hold; OSError or
    SafetensorError if the files cannot be written.
    """
    layers = linear_layers(model, ticket)
    shapes = {name: ticket.shapes[name] for name in layers}
    counts = {name: ticket.slices[name].stop - ticket.slices[name].start for name in layers}
    r = max(-(-counts[name] // sum(shape)) for name, shape in shapes.items())
    for name, (rows, columns) in shapes.items():
        require(
            r * (rows + columns) <= rows * columns,
            f"{name}: SHiRA cannot hold this many entries: r={r} needs r ({rows} + {columns}) <= {rows} x {columns}; export another format",
        )
    additions = (ticket.values.detach() - base_values).cpu()
    tensors = {}
    for name, module in layers.items():
        shape, count = shapes[name], counts[name]
        index = ticket.indices[name]
        flat = torch.arange(count) if index is None else index.long().cpu()
        padded = torch.cat([flat, flat[:1].expand(r * sum(shape) - count)])
        tensors[f"{PREFIX}{module}.shira_indices"] = torch.stack([padded // shape[1], padded % shape[1]]).int()
        tensors[f"{PREFIX}{module}.shira_weight"] = torch.cat([additions[ticket.slices[name]], torch.zeros(padded.numel() - count)])
    settings = {
        "peft_type": "SHIRA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": r,
        "target_modules": list(layers.values()),
        "mask_type": "random",  # PEFT draws a mask before it reads the indices, and knows no other kind
        "inference_mode": True,
    }
    with atomic(folder / ADAPTER) as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    write_json(folder / SETTINGS, settings)


def linear_layers(model: nn.Module, ticket: Ticket) -> Mapping[str, str]:
    """Name of the module by name of its weight, for all tensors with active entries. Raises UserError if one is no linear layer's own weight."""
    users: dict[int, list[tuple[str, Any]]] = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            users.setdefault(id(weight), []).append((path, module))
    found = {}
    for name, place in ticket.slices.items():
        if place.stop > place.start:
            modules = users.get(id(ticket.parameters[name]), [])
            linear = len(modules) == 1 and isinstance(modules[0][1], nn.Linear)
            require(
                linear,
                f"{name} has active entries, but is not the weight of one linear layer, and SHiRA adapts nothing else; "
                "train a mask of linear layers (mask=matrices), or export another format",
            )
            found[name] = modules[0][0]
    return found
