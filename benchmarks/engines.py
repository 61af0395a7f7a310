"""Compares the hf and vllm engines in tokens per second, and a ticket's sync with a full load. One process per model.

python benchmarks/engines.py [model ...]    tiny and qwen2.5-0.5b by default, with random weights in real shapes; on a GPU if there is one

Completions end only at the token limit, so both engines generate equally many tokens. A sync writes the K values of a 99 % ticket into the
running vLLM, resets its prefix cache and counts what was written. A full load does the same at sparsity 0.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch

from mth.config.choices import Dtype, Init
from mth.config.schema import Config, ModelConfig, RolloutConfig, SparsityConfig
from mth.foundations.paths import TINY_MODEL
from mth.models.load import Policy, load_policy
from mth.rollout.engine import Request
from mth.rollout.hf.engine import HfEngine
from mth.rollout.vllm.core import LocalCore
from mth.rollout.vllm.engine import VllmEngine
from mth.tickets.draw import draw_ticket
from mth.tickets.ticket import Ticket

ROUNDS = 5
SYNCS = 20
# number of prompts, group size, tokens per prompt, tokens per completion
TINY = (16, 16, 32, 32)
LARGE_GPU = (32, 16, 128, 128)
LARGE_CPU = (4, 4, 64, 32)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ticket_of(policy: Policy, percent: float) -> Ticket:
    return draw_ticket(policy.model, Config(sparsity=SparsityConfig(percent)))


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def measure(name: str) -> None:
    """Measure one model. Prints a row per engine and per way to update it."""
    if name == "tiny":
        model, sizes = ModelConfig(), TINY
    else:
        device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
        base = ModelConfig(name=name, device=device, path=name, init=Init.random, tokenizer=str(TINY_MODEL))
        model, sizes = replace(base, dtype=Dtype[dtype]), LARGE_GPU if torch.cuda.is_available() else LARGE_CPU
    prompts, group_size, prompt_tokens, new_tokens = sizes
    policy = load_policy(model)
    policy = Policy(policy.model, policy.tokenizer, frozenset({-1}))  # no stop token
    sparse = ticket_of(policy, 99)
    config = RolloutConfig(batch_size=prompts * group_size, context=prompt_tokens + new_tokens + 1)
    core = LocalCore()
    engines = {"hf": HfEngine(policy, sparse, config), "vllm": VllmEngine(policy, sparse, config, core)}
    engines["vllm"].stop_ids = []

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(10, 1000, (prompts, prompt_tokens), generator=generator).tolist()
    requests = [Request(row, 2**40 + i * group_size + j) for i, row in enumerate(rows) for j in range(group_size)]
    speed: dict[str, list[float]] = {key: [] for key in engines}
    for round_ in range(ROUNDS + 1):
        for key, engine in engines.items():
            spent = seconds(lambda engine=engine: engine.generate(requests, new_tokens, 1.0))
            if round_:  # the first warms up
                speed[key].append(len(requests) * new_tokens / spent)
    ratio = [b / a for a, b in zip(speed["hf"], speed["vllm"], strict=True)]

    sync_bytes = load_bytes = 0

    def sync() -> None:
        nonlocal sync_bytes
        sync_bytes = engines["vllm"].sync(sparse.values.detach())

    sync_ms = [1000 * seconds(sync) for _ in range(SYNCS + 1)][1:]
    whole = VllmEngine(policy, ticket_of(policy, 0), config, core)
    values = whole.ticket.values.detach()

    def load() -> None:
        nonlocal load_bytes
        load_bytes = whole.sync(values)

    load_ms = [1000 * seconds(load) for _ in range(ROUNDS + 1)][1:]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{name}: {policy.model.num_parameters():,} parameters, {policy.model.dtype}, {device}; median (range)")
    print(f"{len(requests)} completions of {new_tokens} tokens, prompts of {prompt_tokens}, groups of {group_size}")
    table = pd.DataFrame(
        [
            ("hf", "tokens/s", median(speed["hf"])),
            ("vllm", "tokens/s", median(speed["vllm"])),
            ("vllm over hf", "ratio", median(ratio)),
            (f"sync of {sparse.active_parameters:,} values", "ms", median(sync_ms)),
            ("", "bytes", f"{sync_bytes:,}"),
            ("full load", "ms", median(load_ms)),
            ("", "bytes", f"{load_bytes:,}"),
            ("full load over sync", "ratio of ms", f"{statistics.median(load_ms) / statistics.median(sync_ms):.3g}"),
        ],
        columns=["what", "unit", "value"],
    )
    print(table.to_string(index=False), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2])
    else:
        for chosen in sys.argv[1:] or ["tiny", "qwen2.5-0.5b"]:  # one process per model
            subprocess.run([sys.executable, __file__, "--one", chosen], check=True)
