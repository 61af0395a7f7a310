"""Loads a causal language model with its tokenizer."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mth.config.choices import Dtype, Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError
from mth.models.device import prepare_device, resolve_device
from mth.models.head import check_lm_head
from mth.models.memory import keep_freed_memory
from mth.models.shapes import architecture, model_source, shapes_of
from mth.models.tokenizer import load_tokenizer, stop_ids
from mth.models.weights import load_weights


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer. stop_ids: token ids that end a completion."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]


def load_policy(config: ModelConfig) -> Policy:
    """Load the model to its device, in evaluation mode (no dropout), with its tokenizer. Raises UserError naming the key at fault."""
    tokenizer = load_tokenizer(config)
    shape = architecture(config)
    if shape.vocab_size < len(tokenizer):
        raise UserError(f"model.tokenizer has {len(tokenizer):,} tokens, the model only {shape.vocab_size:,}: they do not belong together")
    kept = _kept.pop(_source_state(config), None)
    device = resolve_device(config.device, lambda: sum(map(math.prod, shapes_of(shape).values())))
    prepare_device(device, config.deterministic)
    if device.type == "cpu":
        keep_freed_memory()
        warn_of_slow_products(config.dtype, "model.dtype")
    model: Any = kept or _load_model(config, shape)
    model.to(device).eval()
    check_lm_head(model)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model, tokenizer, stop_ids(model, tokenizer))


FAST_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # instructions of which one is enough, by torch's names


def warn_of_slow_products(dtype: Dtype | None, key: str) -> None:
    """Print a line if weights in bfloat16 are to be multiplied on a CPU without instructions for it. key: names the dtype."""
    known = torch.cpu.get_capabilities()
    if dtype is Dtype.bfloat16 and not any(known.get(name) for name in FAST_BF16):
        print(
            f"warning: {key}=bfloat16: this CPU has no instructions for bfloat16, so its products are several times slower than in float32; "
            f"give {key}=float32",
            file=sys.stderr,
        )


_kept: dict[Any, PreTrainedModel] = {}  # at most one model, by what it was loaded from


def keep_model(config: ModelConfig) -> None:
    """Load a model now. The next `load_policy` of the same files takes it, in this process or in a fork, which shares its memory.

    One model is kept, on the CPU: a process that has used a GPU cannot be forked. Raises UserError as `load_policy` does.
    """
    state = _source_state(config)
    if state not in _kept:
        _kept.clear()
        _kept[state] = _load_model(config, architecture(config))


def _load_model(config: ModelConfig, shape: PretrainedConfig) -> PreTrainedModel:
    dtype = getattr(torch, config.dtype.name)
    if config.init is Init.pretrained:
        return load_weights(model_source(config), shape, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.init_seed)
        return AutoModelForCausalLM.from_config(shape, dtype=dtype)


def _source_state(config: ModelConfig) -> Any:
    """What makes two loaded models equal: their source, sizes and times of its files, and how they were made."""
    source = model_source(config)
    states = [(file.name, file.stat()) for file in Path(source).iterdir()] if Path(source).is_dir() else []
    files = frozenset((name, state.st_size, state.st_mtime_ns) for name, state in states)
    return source, files, config.init, config.init_seed, config.dtype
