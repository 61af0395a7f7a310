"""Measures the two cost factors of optimizer.weight_gradient=auto on a CPU (mth.tickets.route.sampling_is_cheaper).

python benchmarks/weight_gradients.py

Times the dense and the sampled weight gradient of one layer, interleaved. At 99 and 99.9 % all rows and columns are read. From these two
follow the cost of an active entry and of a transposed feature per token, in multiply-adds of the dense product. At 99.99 % empty rows and
columns are dropped. The last columns compare the rule with the measured times.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from interleave import report
from torch import nn

from mth.tickets.patterns import CompactPattern, compact, gradient_pattern
from mth.tickets.route import sampling_is_cheaper
from mth.tickets.sampled_gradients import add_sampled_product
from mth.tickets.sampling import sample_without_replacement, tensor_stream
from mth.tickets.ticket import Ticket

# rows, columns, tokens: Qwen2.5-1.5B, Qwen2.5-0.5B, the embedded model
SHAPES = [(8960, 1536, 2048), (4864, 896, 512), (4864, 896, 2048), (896, 4864, 2048), (896, 896, 2048), (128, 896, 2048)]
SHAPES += [(512, 192, 8192), (192, 512, 8192), (192, 192, 8192), (64, 192, 8192)]
ROUNDS = 7


def clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pattern(rows: int, columns: int, percent: float) -> torch.Tensor:
    weight = nn.Parameter(torch.zeros(rows, columns))
    index = sample_without_replacement(tensor_stream(0, "w"), rows * columns, int(rows * columns * (1 - percent / 100)))
    return gradient_pattern(Ticket({"w": weight}, {"w": index}), "w")


def sampled(active: CompactPattern, dy: torch.Tensor, x: torch.Tensor) -> None:
    """What backward of a layer with token-major input computes."""
    add_sampled_product(active, dy, x.t().contiguous() if active.columns is None else x.t().index_select(0, active.columns))


def decision(yes: bool) -> str:
    return "sampled" if yes else "dense"


def main() -> None:
    lines = []
    for rows, columns, tokens in SHAPES:
        dy, x = torch.randn(tokens, rows), torch.randn(tokens, columns)
        made = {percent: pattern(rows, columns, percent) for percent in (99, 99.9, 99.99)}
        actives = [CompactPattern(made[99], None, None), CompactPattern(made[99.9], None, None), compact(made[99.99])]
        calls: dict[str, Callable[[], object]] = {"dense": partial(torch.mm, dy.t(), x)}
        calls |= {f"{p:g} %": partial(sampled, active, dy, x) for p, active in zip(made, actives, strict=True)}
        times: dict[str, list[float]] = {key: [] for key in calls}
        for call in calls.values():
            call()
        for _ in range(ROUNDS):
            for key, call in calls.items():
                times[key].append(clock(call))
        dense, many, few, fewest = (statistics.median(values) for values in times.values())
        unit = dense / (rows * columns * tokens)  # seconds of one multiply-add of the dense product
        counts = [active.pattern.values().numel() for active in actives]
        entry = (many - few) / (counts[0] - counts[1]) / tokens / unit
        number = (few / tokens / unit - entry * counts[1]) / (rows + columns)
        lines.append(
            {
                "shape": f"{rows} x {columns}",
                "tokens": tokens,
                "dense ms": f"{1000 * dense:.3g}",
                "99 % ms": f"{1000 * many:.3g}",
                "99.9 % ms": f"{1000 * few:.3g}",
                "99.99 % ms": f"{1000 * fewest:.3g}",
                "an entry": f"{entry:.1f}",
                "a number transposed": f"{number:.0f}",
                "rule at 99 %": decision(sampling_is_cheaper(rows, columns, counts[0])),
                "clock at 99 %": decision(many < dense),
                "rule at 99.99 %": decision(sampling_is_cheaper(rows, columns, counts[2])),
                "clock at 99.99 %": decision(fewest < dense),
            }
        )
    report(
        "weight_gradients",
        "Weight gradient of one layer, dense and sampled",
        {"": pd.DataFrame(lines)},
        "Medians of interleaved calls, fp32.",
    )


if __name__ == "__main__":
    main()
