"""The optimizer of a ticket."""

from typing import Any

import torch

from mth.config.choices import OptimizerName
from mth.config.schema import OptimizerConfig
from mth.tickets.ticket import Ticket


def build_optimizer(ticket: Ticket, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """A torch.optim optimizer of the ticket's flat parameter. Frozen entries have no state and no weight decay."""
    shared: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name is OptimizerName.sgd:
        return torch.optim.SGD([ticket.values], momentum=config.momentum, **shared)
    kind = torch.optim.AdamW if config.name is OptimizerName.adamw else torch.optim.Adam
    return kind([ticket.values], betas=(config.beta1, config.beta2), eps=config.eps, **shared)
