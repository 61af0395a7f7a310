"""Draws the ticket that a configuration names and attaches it to a model."""

import numpy as np
import torch
from torch import nn

from mth.config.choices import ClipNorm
from mth.config.schema import Config
from mth.tickets.masks import sample_mask
from mth.tickets.ticket import Ticket


def model_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by name, tied ones once."""
    return dict(model.named_parameters())


def draw_ticket(model: nn.Module, config: Config) -> Ticket:
    """Draw the mask that family, sparsity and mask_seed determine, and attach its ticket to the model, which must have its base weights."""
    parameters = model_parameters(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    indices = sample_mask(shapes, config.mask, config.sparsity.percent, config.mask_seed, lambda name: flat_weights(parameters[name]))
    return Ticket(parameters, indices, dense_norm=config.optimizer.clip_norm is ClipNorm.dense)


def flat_weights(parameter: torch.Tensor) -> np.ndarray:
    """The entries of a tensor as a flat fp32 array [n] on the CPU."""
    return parameter.detach().reshape(-1).float().cpu().numpy()
