"""Tokens per second of both rollout engines, and a ticket's sync against a full load, side by side in one process per model.

python benchmarks/engines.py [model ...]    tiny and qwen2.5-0.5b by default; weights are random, shapes real; on a GPU where there is one

Replies end at their token limit only, so that both engines generate the same number. A sync writes the K values of a 99 % ticket into the
running vLLM, resets its prefix cache and counts what was written; the full load is that of sparsity 0.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch

from mth.config import Init, MaskConfig, ModelConfig, RolloutConfig
from mth.paths import TINY_MODEL
from mth.policy import Policy, load_policy, model_parameters
from mth.rollout.core import LocalCore
from mth.rollout.engine import Request
from mth.rollout.hf import HfEngine
from mth.rollout.vllm import VllmEngine
from mth.tickets.sampling import sample_mask
from mth.tickets.ticket import Ticket

ROUNDS = 5
SYNCS = 20
# model: config, number of prompts, group size, prompt and reply tokens, on a CPU
TINY = (ModelConfig(), 16, 16, 32, 32)
LARGE = (32, 16, 128, 128)
SMALL = (4, 4, 64, 32)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ticket(policy: Policy, percent: float) -> Ticket:
    parameters = model_parameters(policy.model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    return Ticket(parameters, sample_mask(shapes, MaskConfig().family, percent, 0))


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def measure(name: str) -> None:
    """One model: prints a row for each engine and each way to update it."""
    if name == "tiny":
        model, *sizes = TINY
    else:
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
        base = ModelConfig(name=name, path=name, init=Init.random, tokenizer=str(TINY_MODEL))
        model, *sizes = replace(base, dtype=type(base.dtype)[dtype]), *(LARGE if torch.cuda.is_available() else SMALL)
    prompts, group, width, new = sizes
    policy = load_policy(model)
    policy = Policy(policy.model, policy.tokenizer, frozenset({-1}))  # nothing ends a reply
    sparse = ticket(policy, 99)
    config = RolloutConfig(batch_size=prompts * group, context=width + new + 1)
    core = LocalCore()
    engines = {"hf": HfEngine(policy, sparse, config), "vllm": VllmEngine(policy, sparse, config, core)}
    engines["vllm"].stop_ids = []

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(10, 1000, (prompts, width), generator=generator).tolist()
    requests = [Request(row, 2**40 + i * group + j) for i, row in enumerate(rows) for j in range(group)]
    speed: dict[str, list[float]] = {key: [] for key in engines}
    for turn in range(ROUNDS + 1):
        for key, engine in engines.items():
            spent = seconds(lambda engine=engine: engine.generate(requests, new, 1.0))
            if turn:  # the first warms up
                speed[key].append(len(requests) * new / spent)
    ratio = [b / a for a, b in zip(speed["hf"], speed["vllm"], strict=True)]

    bytes_sent = 0

    def sync() -> None:
        nonlocal bytes_sent
        bytes_sent = engines["vllm"].sync(sparse.values.detach())

    short = [1000 * seconds(sync) for _ in range(SYNCS + 1)][1:]
    whole = VllmEngine(policy, ticket(policy, 0), config, core)
    values = whole.ticket.values.detach()
    sent = 0

    def load() -> None:
        nonlocal sent
        sent = whole.sync(values)

    full = [1000 * seconds(load) for _ in range(ROUNDS + 1)][1:]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{name}: {policy.model.num_parameters():,} parameters, {policy.model.dtype}, {device}; median (range)")
    print(f"{len(requests)} replies of {new} tokens to prompts of {width}, groups of {group}")
    table = pd.DataFrame(
        [
            ("hf", "tokens/s", median(speed["hf"])),
            ("vllm", "tokens/s", median(speed["vllm"])),
            ("vllm over hf", "ratio", median(ratio)),
            (f"sync of {sparse.active_parameters:,} values", "ms", median(short)),
            ("", "bytes", f"{bytes_sent:,}"),
            ("full load", "ms", median(full)),
            ("", "bytes", f"{sent:,}"),
            ("full load over sync", "ratio of ms", f"{statistics.median(full) / statistics.median(short):.3g}"),
        ],
        columns=["what", "unit", "value"],
    )
    print(table.to_string(index=False), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2])
    else:
        for chosen in sys.argv[1:] or ["tiny", "qwen2.5-0.5b"]:  # one engine a process
            subprocess.run([sys.executable, __file__, "--one", chosen], check=True)
