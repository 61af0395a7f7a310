"""Sections of benchmarks/gpu.py that measure decoding: steps replayed as CUDA graphs against steps launched kernel by kernel, and whole
optimizer steps with vLLM against hf.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mth.config.choices import Dtype, Init, TrackerName
from mth.config.schema import Config, LrConfig, ModelConfig, RolloutConfig, TaskConfig, TrackerConfig, TrainConfig
from mth.foundations.paths import TINY_MODEL
from mth.models.device import prepare_device
from mth.models.load import Policy
from mth.rollout.engine import Completion, Request
from mth.rollout.hf import engine as hf


@contextmanager
def timed_captures(on_cpu: bool) -> Iterator[list[float]]:
    """Within, seconds of each capture are appended to the list. A CPU captures nothing: it runs the steps of fixed shape as they are."""
    spent: list[float] = []
    plain = hf.captured

    def captured(step: Any) -> Any:
        start = time.perf_counter()
        made = None if on_cpu else plain(step)
        spent.append(time.perf_counter() - start)
        return made

    hf.captured = captured  # type: ignore[assignment]
    try:
        yield spent
    finally:
        hf.captured = plain


def equal_share(left: list[Completion], right: list[Completion]) -> float:
    """Share of the replies that are the same tokens."""
    return float(np.mean([one.ids == other.ids for one, other in zip(left, right, strict=True)]))


def graphs(bench: Any) -> None:
    """The hf engine with and without CUDA graphs. `ends`: one token in a hundred ends a reply, so that rows leave; else all replies are whole."""
    from gpu_bench import model_of, ticket_of

    prepare_device(bench.device, True)
    prompt, on_cpu = (8 if bench.tiny else 130), bench.device.type == "cpu"
    for name in ("0.5b",) if bench.tiny else ("0.5b", "1.5b"):
        model = model_of(bench, name)
        words, random, ticket = model.config.vocab_size, np.random.default_rng(0), ticket_of(model, 99.9)
        cases = [(8, 24, False)] if bench.tiny else [(64, 64, False), (256, 64, False), (512, 64, False), (512, 400, True)]
        for count, new, ends in cases:
            prompts = [random.integers(0, words, prompt).tolist() for _ in range(count // 8)]
            requests = [Request(prompts[i // 8], i) for i in range(count)]
            policy = Policy(model, None, frozenset(range(words // 100)) if ends else frozenset({-1}))
            found: dict[bool, list[Completion]] = {}
            for captures in (True, False):
                engine = hf.HfEngine(policy, ticket, RolloutConfig(batch_size=count, cuda_graphs=captures))
                engine.captures = engine.captures or (captures and on_cpu)
                with bench.guarded(f"{name} {count}"), timed_captures(on_cpu) as spent_on_captures:
                    engine.generate(requests, min(new, 20), 1.0)
                    before = bench.clear()
                    spent_on_captures.clear()

                    def run(
                        engine: Any = engine, requests: Any = requests, new: int = new, captures: bool = captures, found: Any = found
                    ) -> None:
                        found[captures] = engine.generate(requests, new, 1.0)

                    spent = bench.seconds(run)
                    tokens, longest = (way(len(reply.ids) for reply in found[captures]) for way in (sum, max))
                    bench.say(
                        "decoding",
                        model=name,
                        sequences=count,
                        ends=ends,
                        graphs=captures,
                        seconds=spent,
                        ms_a_token=1000 * spent / longest,
                        tokens_per_s=tokens / spent,
                        captures=len(spent_on_captures),
                        captures_s=sum(spent_on_captures),
                        gib_above=bench.peak() - before,
                    )
            if len(found) == 2:
                bench.say("equal replies", model=name, sequences=count, ends=ends, share=equal_share(found[True], found[False]))
        ticket.detach()
        del model, ticket


def vllm_step(bench: Any) -> None:
    """Whole optimizer steps of a run, with vLLM and with hf: rollouts, update, sync. Left out where vLLM is not installed."""
    if find_spec("vllm") is None:
        bench.say("left out", why="vLLM is not installed")
        return
    from mth.runs.journal import read_journal
    from mth.training.loop import train

    real = {"name": "qwen2.5-0.5b", "path": "none", "tokenizer": str(TINY_MODEL), "init": Init.random, "dtype": Dtype.bfloat16}
    rollouts, new = (8, 8) if bench.tiny else (256, 256)
    for engine in ("vllm", "hf"):
        with bench.guarded(engine), tempfile.TemporaryDirectory() as folder:
            config = Config(
                model=ModelConfig(device=bench.device.type, **({} if bench.tiny else real)),
                task=TaskConfig(name="arithmetic"),
                train=TrainConfig(steps=2 if bench.tiny else 3, batch_size=rollouts),
                rollout=RolloutConfig(engine=engine, group_size=rollouts // 4, max_tokens=new, batch_size=rollouts, context=256 + new),
                tracker=TrackerConfig(TrackerName.none),
                lr=LrConfig(1e-5),
            )
            config.eval.samples, config.eval.every, config.eval.max_tokens, config.checkpoints.every = 2, 0, 8, 0
            config.samples.eval = config.samples.train = 0
            train(config, Path(folder) / "run", Path(folder))
            last = read_journal(Path(folder) / "run")[-1].metrics
            parts = {phase: last[f"seconds/{phase}"] for phase in ("sync", "rollout", "update")}
            bench.say("step", engine=engine, rollouts=rollouts, seconds=sum(parts.values()), **parts, mismatch=last["mismatch/mean"])
