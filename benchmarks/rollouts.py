"""Compares the hf engine with transformers' own generate and with a lower bound, in tokens per second.

python benchmarks/rollouts.py [--rounds N] [--rollouts N ...] [task ...]     arithmetic and alphabet_sort, 128 and 256 rollouts of 16 prompts

The bound is the time of the model's linear layers alone: each distinct prefix once, and at every position only the rows still running.
generate gets the same prompts as one padded batch, and makes as many new tokens as the longest completion has. Rounds are interleaved, and the
fastest counts. With one thread it is CPU time, which a busy machine inflates less than the clock.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel

from mth.config.compose import compose
from mth.config.schema import Config
from mth.config.stored import load
from mth.models.load import Policy, load_policy
from mth.rollout.engine import Completion, Request
from mth.rollout.hf.engine import HfEngine
from mth.rollout.hf.prefill import common_prefix_length
from mth.rollout.player import ChatRenderer, Player
from mth.tasks import load_tasks
from mth.tickets.draw import draw_ticket

PROMPTS = 16
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def clock() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def least(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Fastest time of each call in seconds. The calls take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best


def distinct_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Number of prompt tokens if every shared prefix counts once."""
    ordered = sorted({tuple(prompt) for prompt in prompts})
    total = len(ordered[0])
    return total + sum(len(after) - common_prefix_length(before, after) for before, after in pairwise(ordered))


@torch.no_grad()
def products(model: PreTrainedModel, rows: int, head: bool) -> None:
    """Run the linear layers of the model on `rows` rows."""
    inputs: dict[int, torch.Tensor] = {}
    last = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and (head or layer is not last):
            x = inputs.setdefault(layer.in_features, torch.ones(rows, layer.in_features, dtype=layer.weight.dtype))
            nn.functional.linear(x, layer.weight, layer.bias)


def bound(model: PreTrainedModel, prompts: Sequence[Sequence[int]], lengths: Sequence[int], rounds: int) -> float:
    """Seconds of the matrix products alone: prefill in batches of 1,024 tokens, then one position after another."""
    step = least({str(n): lambda n=n: products(model, n, True) for n in COUNTS}, rounds)
    prefill = least({"prefill": lambda: products(model, COUNTS[-1], False)}, rounds)["prefill"]
    running = [(np.array(lengths) > position).sum() for position in range(1, max(lengths))]
    return prefill * distinct_tokens(prompts) / COUNTS[-1] + float(np.interp(running, COUNTS, [step[str(n)] for n in COUNTS]).sum())


@torch.no_grad()
def transformers_generate(policy: Policy, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Sample with transformers' generate, in one left-padded batch, without stop tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    policy.model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0)


class Recorder:
    """An engine that records its calls."""

    def __init__(self, engine: HfEngine) -> None:
        self.engine = engine
        self.calls: list[tuple[list[Request], int, list[Completion]]] = []

    def generate(
        self, requests: Sequence[Request], max_tokens: int, temperature: float, stops: frozenset[int] = frozenset()
    ) -> list[Completion]:
        requests = [Request(tuple(request.prompt), request.seed) for request in requests]
        completions = self.engine.generate(requests, max_tokens, temperature, stops)
        self.calls.append((requests, max_tokens, completions))
        return completions

    def sync(self, values: torch.Tensor) -> int:
        return self.engine.sync(values)

    def close(self) -> None:
        self.engine.close()


def measure(config: Config, sizes: Sequence[int], rounds: int) -> list[dict[str, object]]:
    """Return one row per number of rollouts and turn."""
    policy = load_policy(config.model)
    engine = HfEngine(policy, draw_ticket(policy.model, config), config.rollout)
    task, _ = load_tasks(config)
    rows: list[dict[str, object]] = []
    for count in sizes:
        group = count // PROMPTS
        recorder = Recorder(engine)
        Player(recorder, ChatRenderer(policy.tokenizer)).rollout_episodes(
            task, task.train[:PROMPTS], group_size=group, max_tokens=config.rollout.max_tokens, temperature=1.0, seed=("benchmark",)
        )
        for turn, (requests, limit, completions) in enumerate(recorder.calls):
            lengths = [len(completion.ids) for completion in completions]
            prompts = [request.prompt for request in requests]
            spent = least(
                {
                    "hf": lambda requests=requests, limit=limit: engine.generate(requests, limit, 1.0),
                    "generate": lambda prompts=prompts, lengths=lengths: transformers_generate(policy, prompts, max(lengths)),
                },
                rounds,
            )
            least_time = bound(policy.model, prompts, lengths, rounds)
            rows.append(
                {
                    "task": config.task.name,
                    "rollouts": f"{count} in groups of {group}",
                    "turn": turn + 1,
                    "prompt": f"{min(map(len, prompts))}-{max(map(len, prompts))}",
                    "tokens": sum(lengths),
                    "longest": max(lengths),
                    "hf s": round(spent["hf"], 3),
                    "hf tok/s": round(sum(lengths) / spent["hf"]),
                    "generate s": round(spent["generate"], 3),
                    "generate/hf": round(spent["generate"] / spent["hf"], 2),
                    "bound s": round(least_time, 3),
                    "bound/hf": round(least_time / spent["hf"], 2),
                }
            )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["arithmetic", "alphabet_sort"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[128, 256])
    options = parser.parse_args()
    how = "CPU time" if torch.get_num_threads() == 1 else "clock"
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; {how}, least of {options.rounds}")
    for name in options.tasks:
        most = 40 if name == "arithmetic" else 96
        config = load(compose([f"task={name}", f"rollout.max_tokens={most}", "task.train_rows=64"]))
        print(pd.DataFrame(measure(config, options.rollouts, options.rounds)).to_string(index=False), flush=True)
