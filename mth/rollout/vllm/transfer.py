"""The receiving side of weight synchronization: a weight-transfer backend inside vLLM that writes a ticket into the running model.

Imported only where vLLM is installed. The trainer uses the names and shapes of the checkpoint. vLLM fuses some tensors along their rows
(q, k, v; gate, up), so each name maps to a constant flat offset into one of vLLM's parameters. Needs tensor parallelism 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

BACKEND = "mth_ticket"  # the backend's name in vLLM's registry


@dataclass
class TicketIndices(WeightTransferInitInfo):
    """indices: checkpoint name -> flat indices of the active entries. Sent once. Every update's values follow their order."""

    indices: Mapping[str, torch.Tensor]


@dataclass
class TicketUpdate(WeightTransferUpdateInfo):
    """values: [K], one per index, in the order of the indices. tensors: checkpoint name -> whole tensor, for vLLM's loader."""

    values: torch.Tensor | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


def locate(model: nn.Module, name: str) -> tuple[torch.Tensor, int]:
    """Find checkpoint tensor `name` in vLLM's model.

    Returns the parameter that holds it, as a flat view, and the offset of its first entry. Raises ValueError if there is none.
    """
    parameters = dict(model.named_parameters())
    if name in parameters:
        return flat_view(parameters[name]), 0
    module, _, leaf = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    packed: Any = getattr(model, "packed_modules_mapping", {})
    for fused, parts in packed.items():
        fused_name = f"{parent}.{fused}.{leaf}"
        if part in parts and fused_name in parameters:
            layer: Any = model.get_submodule(f"{parent}.{fused}")
            parameter = parameters[fused_name]
            first_row = sum(layer.output_sizes[: parts.index(part)])
            return flat_view(parameter), first_row * parameter[0].numel()
    raise ValueError(f"the model has no place for the tensor {name}")


def flat_view(parameter: torch.Tensor) -> torch.Tensor:
    """Return a one-dimensional view. Raises ValueError for a weight that oneDNN packed (it is then empty) or that is transposed."""
    if parameter.numel() == 0 or not parameter.is_contiguous():
        raise ValueError(f"a weight of shape {tuple(parameter.shape)} cannot be written in place: it was packed or transposed")
    return parameter.data.view(-1)


class TicketTransfer(WeightTransferEngine[TicketIndices, TicketUpdate]):
    """Writes tickets into vLLM's model.

    targets: checkpoint name -> flat view of vLLM's parameter, and positions in it. applied: checkpoint name -> entries that the last update
    wrote. filled: addresses of the parameters that whole tensors have filled.
    """

    init_info_cls = TicketIndices
    update_info_cls = TicketUpdate
    supports_draft_weight_update = False
    filled: frozenset[int] = frozenset()

    def init_transfer_engine(self, init_info: TicketIndices) -> None:
        """Resolve every name and index once, after whole tensors have filled the model. Raises ValueError naming a parameter that none filled."""
        self.refuse_derived()
        self.targets: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.applied: dict[str, int] = {}
        for name, index in init_info.indices.items():
            target, offset = locate(self.model, name)
            self.targets[name] = target, index.to(target.device, torch.int64) + offset

    def refuse_derived(self) -> None:
        """Raise ValueError for a parameter that no tensor of the checkpoint fills: vLLM derives it from others, and no update would reach it."""
        for name, parameter in self.model.named_parameters():
            if parameter.numel() and parameter.data_ptr() not in self.filled:
                raise ValueError(f"the model's {name} is filled by no tensor of the trainer, so no update would reach it; use rollout=hf")

    def split(self, values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Split values [K] by tensor. Yields name, target, positions in the target, and values in the target's dtype."""
        start = 0
        for name, (target, positions) in self.targets.items():
            piece = values[start : start + positions.numel()].to(target.device, target.dtype)
            start += positions.numel()
            yield name, target, positions, piece

    @torch.no_grad()
    def receive_weights(self, update_info: TicketUpdate) -> None:
        """Write the values in place, and pass whole tensors to vLLM's loader. Counts the entries of each that then equal what was sent."""
        self.applied = {}
        if update_info.values is not None:
            for name, target, positions, piece in self.split(update_info.values):
                target[positions] = piece
                self.applied[name] = piece.numel()
        if update_info.tensors:
            model: Any = self.model
            model.load_weights(update_info.tensors.items())
            for name, tensor in update_info.tensors.items():
                target, offset = locate(model, name)
                self.filled |= {target.data_ptr()}
                loaded, sent = target[offset : offset + tensor.numel()], tensor.reshape(-1).to(target.device, target.dtype)
                self.applied[name] = int((loaded == sent).sum()) if loaded.numel() == sent.numel() else 0

    @torch.no_grad()
    def count_matching(self, values: torch.Tensor) -> dict[str, int]:
        """Return per tensor how many active entries now equal these values [K]."""
        return {name: int((target[positions] == piece).sum()) for name, target, positions, piece in self.split(values)}

    def start_weight_update(self) -> None:
        """Do nothing: updates are in place."""

    def finish_weight_update(self) -> None:
        """Do nothing: updates are in place."""

    def shutdown(self) -> None:
        """Let go of the model's parameters."""
        self.targets = {}

    @staticmethod
    def trainer_send_weights(iterator: object, trainer_args: object) -> None:
        """Not used: the trainer calls update_weights itself."""
        raise NotImplementedError


def register_backend() -> None:
    """Register the backend with vLLM in this process, once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, TicketTransfer)
