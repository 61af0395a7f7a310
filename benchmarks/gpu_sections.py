"""The sections of benchmarks/gpu.py: python gpu_sections.py SECTION --device DEVICE [--tiny]. Loads, waits for a line on stdin, measures."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_bench import Bench, model_of, ticket_of
from gpu_decoding import graphs, vllm_step
from gpu_parts import attention, ceilings, head
from gpu_tickets import kernel, step, ticket

from mth.config.choices import Dtype, TrackerName
from mth.config.schema import Config, LrConfig, ModelConfig, RolloutConfig, SparsityConfig, TaskConfig, TrackerConfig, TrainConfig
from mth.models.device import prepare_device
from mth.models.load import Policy, load_policy
from mth.rollout.engine import Request
from mth.rollout.hf.engine import HfEngine
from mth.rollout.player import Rollout
from mth.tasks.base import Episode
from mth.tickets.optimizer import build_optimizer
from mth.training.batches import collate
from mth.training.rows import ALONE
from mth.training.sharing import masked_packing, packing_of
from mth.training.update import update


def works(bench: Bench) -> None:
    """Whole runs of the embedded model: does each kind work, and does the same command give the same bits?"""
    from mth.runs.checkpoint import checkpoints_of, load_checkpoint
    from mth.runs.journal import read_journal
    from mth.runs.search import copy_beginning
    from mth.training.loop import train

    steps = 2 if bench.tiny else 6
    small, tokens = (8, 8) if bench.tiny else (128, 32)

    def config_of(steps: int = steps, **model: Any) -> Config:
        config = Config(
            model=ModelConfig(device=bench.device.type, **model),
            task=TaskConfig(name="arithmetic"),
            train=TrainConfig(steps=steps, batch_size=small),
            rollout=RolloutConfig(group_size=small // 4, max_tokens=tokens),
            tracker=TrackerConfig(TrackerName.none),
            lr=LrConfig(5e-3),
        )
        config.eval.samples, config.eval.every = 2 if bench.tiny else 64, 0
        config.samples.eval = config.samples.train = 0  # kept ones need pyarrow, which a machine with a GPU may lack
        return config

    algorithm = replace(config_of().algorithm, kl_coef=0.05, lag=1)
    kinds = {
        "as it is": config_of(),
        "once more": config_of(),
        "half": config_of(steps // 2),
        "continued": config_of(),
        "not deterministic": config_of(deterministic=False),
        "bf16": config_of(dtype=Dtype.bfloat16),
        "bf16 once more": config_of(dtype=Dtype.bfloat16),
        "KL and lag": replace(config_of(dtype=Dtype.bfloat16), algorithm=algorithm),
        "checkpointing": config_of(dtype=Dtype.bfloat16, activation_checkpointing=True),
        "full": replace(config_of(), sparsity=SparsityConfig(0.0)),
    }
    bench.say("bf16", in_lines=packing_of(load_policy(kinds["bf16"].model).model).lines)
    values: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, config in kinds.items():
            with bench.guarded(kind):
                place = folder / kind.replace(" ", "-")
                place.mkdir()
                if kind == "continued":
                    copy_beginning(folder / "half", place, config)
                spent = bench.seconds(lambda config=config, place=place: train(config, place, folder))
                values[kind] = load_checkpoint(checkpoints_of(place)[-1]).tensors["values"]
                last = read_journal(place)[-1].metrics
                bench.say(
                    "run", kind=kind, steps=config.train.steps, seconds=spent, update=last["seconds/update"], reward=last["reward/mean"]
                )
    pairs = {"as it is": ("once more", "continued", "not deterministic"), "bf16": ("bf16 once more",)}
    for kind, others in pairs.items():
        for other in others:
            if kind in values and other in values:
                first, second = values[kind], values[other]
                difference = ((first - second).norm() / first.norm()).item()
                bench.say("same bits", run=kind, compared_to=other, same_bits=bool(torch.equal(first, second)), difference=difference)


def packing(bench: Bench) -> None:
    """Whole updates: rollouts of a prompt in shared rows, as mth chooses and under a mask, against rows of their own."""
    prepare_device(bench.device, True)
    model = model_of(bench, "0.5b")
    ticket, policy, random = ticket_of(model, 99.0), Policy(model, None, frozenset({-1})), np.random.default_rng(0)
    optimizer, words = build_optimizer(ticket, Config().optimizer, 1e-6), model.config.vocab_size
    for prompt, reply, groups in [(4, 8, 2)] if bench.tiny else [(130, 300, 6), (200, 60, 12), (130, 600, 4)]:
        rollouts = []
        for _ in range(groups):
            first = random.integers(0, words, prompt).tolist()
            for _ in range(8):
                count = int(random.integers(reply // 2, reply + 1))
                mask, logprobs = [False] * prompt + [True] * count, [0.0] * prompt + [-7.0] * count
                rollouts.append(Rollout(Episode("x", ("a",), ("b",)), first + random.integers(0, words, count).tolist(), mask, logprobs))
        config = Config(train=TrainConfig(batch_size=8 * groups), rollout=RolloutConfig(group_size=8), lr=LrConfig(1e-6))
        advantages = random.normal(size=len(rollouts)).tolist()
        masked = masked_packing(model, bench.device.type)
        for rows, way in {"as mth chooses": packing_of(model), "under a mask": masked, "one rollout each": ALONE}.items():
            with bench.guarded(rows):
                batches = collate(rollouts, advantages, 16384, bench.device, way)
                tokens = sum(rollout.completion_tokens for rollout in rollouts)
                before = bench.clear()
                arguments = policy, ticket, optimizer, batches, tokens, config
                spent = bench.median(lambda arguments=arguments: update(*arguments))
                places = sum(batch.ids.numel() for batch in batches)
                facts = {"prompt": prompt, "reply": reply, "lines": way.lines, "batches": len(batches), "tokens": places}
                bench.say("update", rows=rows, **facts, seconds=spent, gib_above=bench.peak() - before)


def decoding(bench: Bench) -> None:
    """The hf engine against transformers' own generate."""
    prepare_device(bench.device, True)
    prompt, new = (8, 4) if bench.tiny else (130, 64)
    for name, sizes in (("0.5b", [8]),) if bench.tiny else (("0.5b", [64, 256, 512]), ("1.5b", [256])):
        model = model_of(bench, name)
        ticket, policy, random = ticket_of(model, 99.9), Policy(model, None, frozenset({-1})), np.random.default_rng(0)
        for count in sizes:
            prompts = [random.integers(0, model.config.vocab_size, prompt).tolist() for _ in range(count // 8)]
            requests = [Request(prompts[i // 8], i) for i in range(count)]
            engine = HfEngine(policy, ticket, RolloutConfig(batch_size=count))
            with bench.guarded(f"hf {count}"):
                engine.generate(requests, 4, 1.0)
                before = bench.clear()
                spent = bench.seconds(lambda engine=engine, requests=requests: engine.generate(requests, new, 1.0))
                figures = {"seconds": spent, "ms_a_token": 1000 * spent / new, "tokens_per_s": count * new / spent}
                bench.say("decoding", model=name, engine="hf", sequences=count, **figures, gib_above=bench.peak() - before)
        with bench.guarded("generate"), torch.no_grad():
            ids = torch.tensor([request.prompt for request in requests], device=bench.device)
            options = {"attention_mask": torch.ones_like(ids), "do_sample": True, "pad_token_id": 0}

            def generate(tokens: int, model=model, ids=ids, options=options) -> None:
                model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options)

            generate(4)
            before = bench.clear()
            spent = bench.seconds(lambda: generate(new))
            figures = {"seconds": spent, "ms_a_token": 1000 * spent / new, "tokens_per_s": count * new / spent}
            bench.say("decoding", model=name, engine="transformers", sequences=count, **figures, gib_above=bench.peak() - before)
        del model, ticket, policy, engine


def vllm(bench: Bench) -> None:
    """vLLM beside the model: start, tokens per second, sync, mismatch of log-probabilities. Left out where it is not installed."""
    if find_spec("vllm") is None:
        bench.say("left out", why="vLLM is not installed")
        return
    from mth.rollout.vllm.core import LocalCore
    from mth.rollout.vllm.engine import VllmEngine
    from mth.training.logprobs import completion_logprobs

    model = model_of(bench, "0.5b")
    made, policy = ticket_of(model, 99.0), Policy(model, None, frozenset({-1}))
    count, prompt, new = (8, 8, 4) if bench.tiny else (256, 130, 128)
    config, engine = RolloutConfig(batch_size=count, context=prompt + new + 1), None
    for start in ("cold", "again"):
        spent = time.perf_counter()
        engine = VllmEngine(policy, made, config, LocalCore())
        bench.say("vLLM", measured=f"start, {start}", value=time.perf_counter() - spent, unit="s")
        if start == "cold":
            engine.close()
    assert engine is not None
    engine.stop_ids = []
    random = np.random.default_rng(0)
    requests = [Request(random.integers(0, model.config.vocab_size, prompt).tolist(), i) for i in range(count)]
    engine.generate(requests, 4, 1.0)
    spent = bench.seconds(lambda: engine.generate(requests, new, 1.0))
    bench.say("vLLM", measured="decoding", value=count * new / spent, unit="tokens/s")
    bench.say("vLLM", measured="sync", value=1000 * bench.median(lambda: engine.sync(made.values.data)), unit="ms")
    replies = engine.generate(requests[:4], new, 1.0)
    ids = torch.tensor([[*request.prompt, *reply.ids] for request, reply in zip(requests, replies, strict=False)], device=bench.device)
    sampled = torch.zeros_like(ids, dtype=torch.bool)
    sampled[:, prompt:] = True
    with torch.no_grad():
        own, _ = completion_logprobs(model, ids, sampled, 1.0)
    gap = (own.cpu() - torch.tensor([value for reply in replies for value in reply.logprobs])).abs()
    bench.say("vLLM", measured="mismatch of log-probabilities, mean", value=gap.mean().item(), unit="nats")
    engine.close()
    bench.say("vLLM", measured="memory after close", value=bench.clear(), unit="GiB")


def trl(bench: Bench) -> None:
    """One GRPO step of the embedded model beside TRL: benchmarks/grpo.py. Left out where TRL is not installed."""
    if find_spec("trl") is None or find_spec("datasets") is None:
        bench.say("left out", why="trl is not installed")
        return
    import grpo
    from interleave import measure, summarize

    sizes = (2, 2, 4) if bench.tiny else (16, 8, 32)
    names = ["TRL GRPOTrainer, full", "mth, 99 %"] if bench.tiny else [name for name in grpo.WORKERS if "kept" not in name]
    flags = [text for pair in zip(("--prompts", "--group", "--new"), map(str, sizes), strict=True) for text in pair]
    measured = measure({name: [str(grpo.HERE), "--worker", name, *flags] for name in names}, 1 if bench.tiny else 5)
    for row in summarize(measured, "TRL GRPOTrainer, full").to_dict("records"):
        bench.say("GRPO step", **{key: value.item() if hasattr(value, "item") else value for key, value in row.items()})


def cells(bench: Bench) -> None:
    """Cells of the embedded model that share the device, forked from a resident process."""
    import subprocess

    count = 2 if bench.tiny else 10
    keys = ["task=arithmetic", f"train.steps={1 if bench.tiny else 16}", "train.batch_size=32", "eval.samples=16", "eval.every=0"]
    keys += ["tracker=none", "samples.eval=0", "samples.train=0", f"model.device={bench.device.type}", f"hydra.launcher.jobs={count}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mth.train", "-m", f"mask_seed=range(0,{count})", *keys]

        def run() -> None:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])

        spent = bench.seconds(run)
    bench.say("cells", count=count, at_a_time=count, seconds=spent, seconds_a_cell=spent / count)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "works": works,
    "ceilings": ceilings,
    "step-1.5b": lambda bench: step(bench, "1.5b"),
    "head": head,
    "attention": attention,
    "packing": packing,
    "decoding": decoding,
    "graphs": graphs,
    "ticket": ticket,
    "kernel": kernel,
    "step-0.5b": lambda bench: step(bench, "0.5b"),
    "vllm": vllm,
    "vllm-step": vllm_step,
    "trl": trl,
    "cells": cells,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.section, options.device, options.tiny)
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU is visible to torch; --device cpu --tiny tries the program on a CPU")
    if options.section == "works":
        where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
        bench.say("machine", device=where, torch=torch.__version__, transformers=transformers.__version__, python=sys.version.split()[0])
    start = time.perf_counter()
    with bench.guarded(options.section):
        SECTIONS[options.section](bench)
    bench.say("section", seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
