"""Memory of a ticket: tensor by tensor as together, and the arithmetic behind the paper's Table 5."""

import pytest
import torch

from mth.analysis.memory import MIB, PAPER_MIB, allocated, optimizer_mib
from mth.config import Init, MaskConfig, ModelConfig, OptimizerConfig
from mth.policy import model_parameters, parameter_shapes
from mth.tickets.sampling import MaskFamily, active_counts, sample_mask
from mth.tickets.ticket import Ticket
from mth.update import build_optimizer


@pytest.mark.parametrize("percent", [0, 99, 99.9])
def test_tensor_by_tensor_is_what_one_ticket_allocates(small_model, percent):
    parameters = model_parameters(small_model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    ticket = Ticket(parameters, sample_mask(shapes, MaskFamily.random, percent, 0))
    optimizer = build_optimizer(ticket, OptimizerConfig(), 1e-6)
    optimizer.step()
    assert allocated(shapes, percent) == ticket.memory(optimizer)
    moments = [t for t in optimizer.state[ticket.values].values() if isinstance(t, torch.Tensor) and t.numel() > 1]
    assert sum(t.untyped_storage().nbytes() for t in moments) == ticket.memory(optimizer)["moments"]


def test_12_bytes_per_active_entry_where_the_paper_has_16():
    for name, levels in PAPER_MIB.items():
        shapes = parameter_shapes(ModelConfig(name=name, path="none", init=Init.random))
        for percent, paper in levels.items():
            active = sum(active_counts(shapes, percent, MaskConfig()).values())
            assert active * (8 if percent == 0 else 16) / MIB == pytest.approx(paper, rel=0.002, abs=0.3)  # the paper adds about 0.25 MiB
    small = allocated(shapes, 99.99)  # the last model's real shapes, allocated
    assert small["moments"] + small["index"] == 12 * small["values"] // 4
    assert optimizer_mib(small) == pytest.approx(12 / 16 * PAPER_MIB[name][99.99], rel=0.4)
