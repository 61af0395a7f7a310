"""Times drawing the mask of Qwen2.5-1.5B at 99 %, and saving and loading its ticket.

python benchmarks/ticket.py [--model qwen2.5-1.5b]

Compares drawing with the first k entries of torch.randperm per tensor, and the size of a checkpoint with its values and moments alone.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from interleave import report
from torch import nn
from tqdm import tqdm

from mth.config.choices import Init
from mth.config.schema import Config, LrConfig, ModelConfig, OptimizerConfig, SparsityConfig
from mth.models.shapes import parameter_shapes
from mth.runs.checkpoint import load_checkpoint, restore_training, save_checkpoint
from mth.tickets.indices import active_count
from mth.tickets.masks import sample_mask
from mth.tickets.optimizer import build_optimizer
from mth.tickets.ticket import Ticket

ROUNDS = 5


def clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-1.5b")
    name = parser.parse_args().model
    shapes = parameter_shapes(ModelConfig(name=name, path="none", init=Init.random))
    sampling = [clock(lambda: sample_mask(shapes, "random", 99, 0)) for _ in range(ROUNDS)]
    permutations = 0.0
    for shape in tqdm(shapes.values(), desc="randperm of every tensor"):
        size = math.prod(shape)
        permutations += clock(lambda size=size: torch.randperm(size)[: active_count(size, 99)].sort())

    indices = sample_mask(shapes, "random", 99, 0)
    parameters = {key: nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), requires_grad=False) for key, shape in shapes.items()}
    ticket = Ticket(parameters, indices)
    config = Config(model=ModelConfig(name=name, path="none"), sparsity=SparsityConfig(99.0), lr=LrConfig(1e-4))
    optimizer = build_optimizer(ticket, OptimizerConfig(), 1e-4)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.safetensors"
        saving = [clock(lambda: save_checkpoint(path, ticket, config, 1, optimizer, {})) for _ in range(ROUNDS)]
        loading = [clock(lambda: restore_training(load_checkpoint(path), ticket, optimizer, config)) for _ in range(ROUNDS)]
        size, payload = path.stat().st_size, 12 * ticket.active_parameters

    def row(what: str, times: list[float], against: str) -> dict[str, str]:
        return {"what": what, "seconds": f"{statistics.median(times):.3f}", "range": f"{min(times):.3f} to {max(times):.3f}", "": against}

    table = pd.DataFrame(
        [
            row(
                f"mask, {ticket.active_parameters:,} entries",
                sampling,
                f"{permutations / statistics.median(sampling):.0f} times faster than randperm",
            ),
            row("torch.randperm per tensor", [permutations], ""),
            row("checkpoint saved, on the disk", saving, f"{size:,} bytes, {100 * (size / payload - 1):.3f} % above values and moments"),
            row("checkpoint loaded into ticket and optimizer", loading, ""),
        ]
    )
    report("ticket", f"Mask and checkpoint of {name} at 99 %", {"": table}, "Medians of five.")


if __name__ == "__main__":
    main()
