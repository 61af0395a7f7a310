"""Loading a causal language model and its tokenizer, and drawing the ticket that trains it."""

import ctypes
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mth.config import ClipNorm, Config, Init, ModelConfig
from mth.errors import UserError
from mth.paths import ASSETS
from mth.tickets.sampling import Shapes, sample_mask
from mth.tickets.ticket import Ticket

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Policy:
    """A model, its tokenizer, and the token ids that end a reply."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]


def model_source(config: ModelConfig) -> str:
    """Folder or hub id of the weights; without `path`, the model of that name that the package ships."""
    if config.path is not None:
        return config.path
    packaged = ASSETS / config.name
    if not packaged.is_dir():
        raise UserError(f"model.name={config.name} is not shipped with mth; give model.path=<hub id or local folder>")
    return str(packaged)


def architecture(config: ModelConfig) -> PretrainedConfig:
    """The model's shape; for random weights the package knows the published Qwen2.5 architectures without a download."""
    source = model_source(config)
    packaged = ASSETS / config.name
    if config.init is Init.random and not Path(source).is_dir() and (packaged / "config.json").is_file():
        source = str(packaged)
    try:
        shape = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={source}: no model configuration found ({_first_line(error)})") from error
    # No dropout in reinforcement learning, nor where activation checkpointing needs training mode.
    for key, value in shape.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(shape, key, 0.0)
    return shape


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every parameter tensor, tied ones once, without allocating any weight."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture(config))
    model.tie_weights()
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU when there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device={name}, but no GPU is visible to torch; use model.device=cpu")
    return torch.device(name)


def tokenizer_loader(source: str) -> Any:
    """AutoTokenizer, but for a local folder that declares a generic tokenizer: AutoTokenizer would take the class that goes with the
    model type (for `qwen2`, Qwen's own) and silently replace the word-splitting rule that is in the folder's tokenizer.json.
    """
    declared = Path(source) / "tokenizer_config.json"
    if declared.is_file() and (Path(source) / "tokenizer.json").is_file():
        name = json.loads(declared.read_text()).get("tokenizer_class")
        if name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast
    return AutoTokenizer


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer` or of the model itself; a ChatML template is added where none is given."""
    source = config.tokenizer or model_source(config)
    try:
        tokenizer = tokenizer_loader(source).from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"no tokenizer in {source}: give model.tokenizer=<hub id or folder> ({_first_line(error)})") from error
    if len(tokenizer) == 0 or not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UserError(f"no tokenizer in {source}: give model.tokenizer=<hub id or folder>")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    return tokenizer


def keep_memory() -> None:
    """Let glibc's allocator keep what is freed for the next step, instead of giving it back to the system and faulting it in again.

    A step of the 0.5B shape at 2,048 tokens touches about 3 GB anew otherwise, a fifth of its time on a virtual machine. For the whole
    process; nothing happens with another C library, or where MALLOC_ variables of the environment say what is wished.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def load_policy(config: ModelConfig) -> Policy:
    """Model on its device, in evaluation mode (no dropout), with its tokenizer. Raises UserError naming the key at fault."""
    tokenizer = load_tokenizer(config)
    shape = architecture(config)
    if shape.vocab_size < len(tokenizer):
        raise UserError(f"model.tokenizer has {len(tokenizer):,} tokens, the model only {shape.vocab_size:,}: they do not belong together")
    device = resolve_device(config.device)
    if device.type == "cpu":
        keep_memory()
    dtype = getattr(torch, config.dtype.name)
    if config.init is Init.random:
        torch.manual_seed(config.init_seed)
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                model_source(config), config=shape, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"model.path={model_source(config)}: weights cannot be loaded ({_first_line(error)})") from error
    model.to(device).eval()
    check_head(model)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model, tokenizer, stop_ids(model, tokenizer))


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise UserError for a model that changes its logits behind the LM head: they would not be those that mth samples and trains from."""
    ids = torch.arange(3, device=model.device)[None]
    whole = model(input_ids=ids, use_cache=False).logits
    parts = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(whole.float(), parts.float(), rtol=1e-2, atol=1e-2):
        raise UserError(
            f"model.path: {type(model).__name__} scales or caps its logits behind the LM head, which mth does not; choose another model"
        )


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a reply: the tokenizer's and the model's end tokens, and ChatML's end of turn."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, model.generation_config.eos_token_id, model.config.eos_token_id):
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    for text in ("<|im_end|>", "<|endoftext|>"):
        token = tokenizer.convert_tokens_to_ids(text)
        if isinstance(token, int) and token != tokenizer.unk_token_id:
            found.add(token)
    if not found:
        raise UserError("the tokenizer has no end-of-text token; give model.tokenizer=<one that has>")
    return frozenset(found)


def model_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by name, tied ones once."""
    return dict(model.named_parameters())


def draw_ticket(policy: Policy, config: Config) -> Ticket:
    """Sample the mask that (mask family, sparsity, mask_seed) names and attach its ticket to the model, which must have its base weights."""
    parameters = model_parameters(policy.model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    indices = sample_mask(shapes, config.mask, config.sparsity.percent, config.mask_seed, lambda name: flat_weights(parameters[name]))
    return Ticket(parameters, indices, dense_norm=config.optimizer.clip_norm is ClipNorm.dense)


def flat_weights(parameter: torch.Tensor) -> np.ndarray:
    """A tensor's entries in fp32 [n], on the CPU."""
    return parameter.detach().reshape(-1).float().cpu().numpy()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
