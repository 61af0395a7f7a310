"""The optimizer of a ticket."""

from collections.abc import Callable
from typing import Any

import torch

from mth.config.choices import Decay, OptimizerName
from mth.config.schema import OptimizerConfig
from mth.tickets.ticket import Ticket


def build_optimizer(ticket: Ticket, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """A torch.optim optimizer of the ticket's flat parameter. Frozen entries have no state and no weight decay."""
    shared: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name is OptimizerName.sgd:
        return torch.optim.SGD([ticket.values], momentum=config.momentum, **shared)
    kind = torch.optim.AdamW if config.name is OptimizerName.adamw else torch.optim.Adam
    optimizer = kind([ticket.values], betas=(config.beta1, config.beta2), eps=config.eps, **shared)
    if config.decay is Decay.corrected and config.name is OptimizerName.adamw:
        optimizer.register_step_pre_hook(corrected_decay(ticket, config))
    return optimizer


def state_shapes(config: OptimizerConfig, count: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the optimizer keeps for `count` values after its first step, all fp32. Names are torch.optim's."""
    if config.name is OptimizerName.sgd:
        return {"momentum_buffer": (count,)} if config.momentum else {}
    return {"step": (), "exp_avg": (count,), "exp_avg_sq": (count,)}


def corrected_decay(ticket: Ticket, config: OptimizerConfig) -> Callable[..., None]:
    """A hook before each step of AdamW. Step t = 1, 2, ... takes lr x weight_decay / (1 - beta1^t) of the values, as the published code does.

    That code applies the step size after Adam's bias correction to the decay as well; with beta1 = 0.9 the first step decays ten times as much.
    """

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        step = int(optimizer.state.get(ticket.values, {}).get("step", 0)) + 1
        optimizer.param_groups[0]["weight_decay"] = config.weight_decay / (1 - config.beta1**step)

    return before_step
