"""Tokens per second of the hf engine, of transformers' own generate, and of nothing but the matrix products both must do.

python benchmarks/rollouts.py [--rounds N] [--rollouts N ...] [task ...]     arithmetic and alphabet_sort, 128 and 256 rollouts of 16 prompts

The bound is the time of the model's linear layers alone for the tokens of these rollouts: each distinct beginning read once, and at every
position exactly the rows that still run. generate gets the same prompts as one padded batch and as many new tokens as the longest reply. Rounds
are interleaved; the least CPU time with one thread (a busy machine inflates the clock, less so CPU time), else of the clock.
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

from mth.compose import compose
from mth.config import Config, load
from mth.policy import Policy, draw_ticket, load_policy
from mth.rollout.conversation import Script, play
from mth.rollout.engine import Completion, Request
from mth.rollout.hf import HfEngine, agreement
from mth.tasks import load_tasks

PROMPTS = 16
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def clock() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def least(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each call, taken in turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best


def distinct_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens must be read when every common beginning is read once."""
    ordered = sorted({tuple(prompt) for prompt in prompts})
    total = len(ordered[0])
    return total + sum(len(after) - agreement(before, after) for before, after in pairwise(ordered))


@torch.no_grad()
def products(model: PreTrainedModel, rows: int, head: bool) -> None:
    """The linear layers of the model on `rows` rows, each on inputs of its own width."""
    inputs: dict[int, torch.Tensor] = {}
    last = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and (head or layer is not last):
            x = inputs.setdefault(layer.in_features, torch.ones(rows, layer.in_features, dtype=layer.weight.dtype))
            nn.functional.linear(x, layer.weight, layer.bias)


def bound(model: PreTrainedModel, prompts: Sequence[Sequence[int]], lengths: Sequence[int], rounds: int) -> float:
    """Seconds of the products alone: prompts in pieces of 1,024 tokens, then one position after the other."""
    step = least({str(n): lambda n=n: products(model, n, True) for n in COUNTS}, rounds)
    piece = least({"read": lambda: products(model, COUNTS[-1], False)}, rounds)["read"]
    running = [(np.array(lengths) > position).sum() for position in range(1, max(lengths))]
    return piece * distinct_tokens(prompts) / COUNTS[-1] + float(np.interp(running, COUNTS, [step[str(n)] for n in COUNTS]).sum())


@torch.no_grad()
def peer(policy: Policy, prompts: Sequence[Sequence[int]], new: int) -> None:
    """transformers' generate on a batch padded on the left, sampling, without end tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    policy.model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0)


class Recorder:
    """An engine that keeps what it was asked for and what it said."""

    def __init__(self, engine: HfEngine) -> None:
        self.engine = engine
        self.calls: list[tuple[list[Request], int, list[Completion]]] = []

    def generate(self, requests: Sequence[Request], max_tokens: int, temperature: float) -> list[Completion]:
        asked = [Request(tuple(r.prompt), r.seed) for r in requests]
        said = self.engine.generate(asked, max_tokens, temperature)
        self.calls.append((asked, max_tokens, said))
        return said

    def sync(self, values: torch.Tensor) -> int:
        return self.engine.sync(values)

    def close(self) -> None:
        self.engine.close()


def measure(config: Config, sizes: Sequence[int], rounds: int) -> list[dict[str, object]]:
    """One row per turn of the task's conversations and number of rollouts."""
    policy = load_policy(config.model)
    engine = HfEngine(policy, draw_ticket(policy, config), config.rollout)
    task, _ = load_tasks(config)
    rows: list[dict[str, object]] = []
    for count in sizes:
        group = count // PROMPTS
        recorder = Recorder(engine)
        play(recorder, Script(policy.tokenizer), task, task.train[:PROMPTS], group, config.rollout.max_tokens, 1.0, ("benchmark",))
        for turn, (asked, limit, said) in enumerate(recorder.calls):
            lengths = [len(completion.ids) for completion in said]
            prompts = [request.prompt for request in asked]
            spent = least(
                {
                    "hf": lambda asked=asked, limit=limit: engine.generate(asked, limit, 1.0),
                    "peer": lambda prompts=prompts, lengths=lengths: peer(policy, prompts, max(lengths)),
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
                    "generate s": round(spent["peer"], 3),
                    "generate/hf": round(spent["peer"] / spent["hf"], 2),
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
