"""Memory of a ticket: tensor by tensor as together, and the arithmetic behind the paper's Table 5."""

import pytest
import torch

from mth.analysis.memory import MIB, allocated_bytes, optimizer_mib
from mth.config import paper
from mth.config.choices import Init
from mth.config.schema import MaskConfig, ModelConfig, OptimizerConfig
from mth.models.shapes import parameter_shapes
from mth.tickets.draw import model_parameters
from mth.tickets.masks import active_counts, sample_mask
from mth.tickets.optimizer import build_optimizer
from mth.tickets.ticket import Ticket


@pytest.mark.parametrize("percent", [0, 99, 99.9])
def test_tensor_by_tensor_is_what_one_ticket_allocates(small_model, percent):
    parameters = model_parameters(small_model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    ticket = Ticket(parameters, sample_mask(shapes, "random", percent, 0))
    optimizer = build_optimizer(ticket, OptimizerConfig(), 1e-6)
    optimizer.step()
    assert allocated_bytes(shapes, percent) == ticket.memory(optimizer)
    moments = [t for t in optimizer.state[ticket.values].values() if isinstance(t, torch.Tensor) and t.numel() > 1]
    assert sum(t.untyped_storage().nbytes() for t in moments) == ticket.memory(optimizer)["moments"]


def test_12_bytes_per_active_entry_where_the_paper_has_16():
    for name, levels in paper.OPTIMIZER_MIB.items():
        shapes = parameter_shapes(ModelConfig(name=name, path="none", init=Init.random))
        for percent, mib in zip(paper.LEVELS, levels, strict=True):
            active = sum(active_counts(shapes, percent, MaskConfig()).values())
            assert active * (8 if percent == 0 else 16) / MIB == pytest.approx(mib, rel=0.002, abs=0.3)  # the paper adds about 0.25 MiB
    small = allocated_bytes(shapes, 99.99)  # of the last model
    assert small["moments"] + small["index"] == 12 * small["values"] // 4
    assert optimizer_mib(small) == pytest.approx(12 / 16 * levels[paper.LEVELS.index(99.99)], rel=0.4)
