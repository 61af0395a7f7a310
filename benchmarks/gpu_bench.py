"""What the sections of benchmarks/gpu.py share: how they measure, and the models they measure."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mth.foundations.errors import first_line
from mth.foundations.paths import ASSETS
from mth.tickets.draw import model_parameters
from mth.tickets.masks import sample_mask
from mth.tickets.ticket import Ticket

GIB = 2**30


class Bench:
    """Where a section measures, and how it says what it found."""

    def __init__(self, section: str, device: str, tiny: bool) -> None:
        self.section, self.device, self.tiny = section, torch.device(device), tiny
        self.dtype = torch.bfloat16

    def say(self, what: str, **values: Any) -> None:
        """Print a measurement as a JSON line."""
        short = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
        print(json.dumps({"section": self.section, "what": what, **short}), flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call, with its work on the device."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def median(self, call: Callable[[], object], rounds: int = 3, warm: int = 1) -> float:
        """Median seconds of a call, after some to warm up."""
        for _ in range(warm):
            call()
        return statistics.median(self.seconds(call) for _ in range(rounds))

    def clear(self) -> float:
        """Free memory and start its peak anew. Returns the GiB in use."""
        gc.collect()
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / GIB

    def peak(self) -> float:
        """Peak GiB since `clear`."""
        return torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else 0.0

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Within, an error is said in one line; the section goes on."""
        try:
            yield
        except Exception as error:
            self.say("failed", of=what, why=f"{type(error).__name__}: {first_line(error, 250)}")
        finally:
            self.clear()


def model_of(bench: Bench, name: str) -> PreTrainedModel:
    """A Qwen2.5 model, 0.5b or 1.5b, with random weights; in tiny two narrow layers."""
    shape = AutoConfig.from_pretrained(ASSETS / f"qwen2.5-{name}")
    if bench.tiny:
        shape.num_hidden_layers, shape.vocab_size, shape.layer_types = 2, 500, shape.layer_types[:2]
        shape.hidden_size, shape.intermediate_size, shape.num_attention_heads, shape.num_key_value_heads = 64, 96, 2, 1
    torch.manual_seed(0)
    with bench.device:
        return AutoModelForCausalLM.from_config(shape, dtype=bench.dtype).eval()


def ticket_of(model: PreTrainedModel, percent: float) -> Ticket:
    parameters = model_parameters(model)
    return Ticket(parameters, sample_mask({name: tuple(p.shape) for name, p in parameters.items()}, "random", percent, 0))
