"""The receiving side of synchronisation, inside vLLM: a weight-transfer backend that writes a ticket into the running model.

Imported only where vLLM is installed. The trainer speaks in the names and shapes of the checkpoint; vLLM fuses some of those tensors
along their rows (q, k, v; gate, up), so every name has a constant flat offset into one of vLLM's parameters (tensor parallelism 1).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

BACKEND = "mth_ticket"


@dataclass
class TicketIndices(WeightTransferInitInfo):
    """indices: checkpoint name -> flat indices of the active entries, sent once. Their order is that of the values of every update."""

    indices: Mapping[str, torch.Tensor]


@dataclass
class TicketUpdate(WeightTransferUpdateInfo):
    """values: [K], one per index, in the order of the indices. tensors: checkpoint name -> whole tensor, for vLLM's own loader."""

    values: torch.Tensor | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


def locate(model: nn.Module, name: str) -> tuple[torch.Tensor, int]:
    """vLLM's parameter that holds checkpoint tensor `name`, flat, and the offset of the tensor's first entry. ValueError if there is none."""
    parameters = dict(model.named_parameters())
    if name in parameters:
        return flat(parameters[name]), 0
    module, _, leaf = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    packed: Any = getattr(model, "packed_modules_mapping", {})
    for fused, parts in packed.items():
        whole = f"{parent}.{fused}.{leaf}"
        if part in parts and whole in parameters:
            layer: Any = model.get_submodule(f"{parent}.{fused}")
            rows, parameter = sum(layer.output_sizes[: parts.index(part)]), parameters[whole]
            return flat(parameter), rows * parameter[0].numel()
    raise ValueError(f"the model has no place for the tensor {name}")


def flat(parameter: torch.Tensor) -> torch.Tensor:
    """A one-dimensional view, never a copy. An emptied weight (packed by oneDNN) has no entries and is refused."""
    if parameter.numel() == 0 or not parameter.is_contiguous():
        raise ValueError(f"a weight of shape {tuple(parameter.shape)} cannot be written in place: it was packed or transposed")
    return parameter.data.view(-1)


class TicketTransfer(WeightTransferEngine[TicketIndices, TicketUpdate]):
    """`applied` is the answer to an update: per checkpoint name how many entries were written."""

    init_info_cls = TicketIndices
    update_info_cls = TicketUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: TicketIndices) -> None:
        """Resolve every name and index once."""
        self.places: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.applied: dict[str, int] = {}
        for name, index in init_info.indices.items():
            target, offset = locate(self.model, name)
            self.places[name] = target, index.to(target.device, torch.int64) + offset

    def pieces(self, values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Name, target, positions in it and values of every tensor of the ticket."""
        start = 0
        for name, (target, positions) in self.places.items():
            piece = values[start : start + positions.numel()].to(target.device, target.dtype)
            start += positions.numel()
            yield name, target, positions, piece

    @torch.no_grad()
    def receive_weights(self, update_info: TicketUpdate) -> None:
        """Write the values in place, and hand whole tensors to vLLM's loader."""
        self.applied = {}
        if update_info.values is not None:
            for name, target, positions, piece in self.pieces(update_info.values):
                target[positions] = piece
                self.applied[name] = piece.numel()
        if update_info.tensors:
            model: Any = self.model
            model.load_weights(update_info.tensors.items())
            self.applied |= {name: self.matching(name, tensor) for name, tensor in update_info.tensors.items()}

    @torch.no_grad()
    def matching(self, name: str, tensor: torch.Tensor) -> int:
        """How many entries of a whole tensor the model really holds now."""
        target, offset = locate(self.model, name)
        held = target[offset : offset + tensor.numel()]
        return 0 if held.numel() != tensor.numel() else int((held == tensor.reshape(-1).to(held.device, held.dtype)).sum())

    @torch.no_grad()
    def held(self, values: torch.Tensor) -> dict[str, int]:
        """Per tensor, how many of its active entries hold these values [K] now: nothing is written."""
        return {name: int((target[positions] == piece).sum()) for name, target, positions, piece in self.pieces(values)}

    def start_weight_update(self) -> None:
        """Nothing to prepare: updates are in place."""

    def finish_weight_update(self) -> None:
        """Nothing to finish."""

    def shutdown(self) -> None:
        self.places = {}

    @staticmethod
    def trainer_send_weights(iterator: object, trainer_args: object) -> None:
        """Not used: the trainer calls update_weights itself."""
        raise NotImplementedError


def register() -> None:
    """Make the backend known to vLLM in this process, once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, TicketTransfer)
