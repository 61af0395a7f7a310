"""Loads a causal language model with its tokenizer."""

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError, first_line
from mth.models.memory import keep_freed_memory
from mth.models.shapes import architecture, model_source
from mth.models.tokenizer import load_tokenizer, stop_ids


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer. stop_ids: token ids that end a completion."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]


def resolve_device(name: str) -> torch.device:
    """Return the device of `model.device`. `auto` is the first GPU, or the CPU if there is none. Raises UserError if no GPU is visible."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device={name}, but no GPU is visible to torch; use model.device=cpu")
    return torch.device(name)


def load_policy(config: ModelConfig) -> Policy:
    """Load the model to its device, in evaluation mode (no dropout), with its tokenizer. Raises UserError naming the key at fault."""
    tokenizer = load_tokenizer(config)
    shape = architecture(config)
    if shape.vocab_size < len(tokenizer):
        raise UserError(f"model.tokenizer has {len(tokenizer):,} tokens, the model only {shape.vocab_size:,}: they do not belong together")
    device = resolve_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
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
            raise UserError(f"model.path={model_source(config)}: weights cannot be loaded ({first_line(error, 160)})") from error
    model.to(device).eval()
    check_lm_head(model)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model, tokenizer, stop_ids(model, tokenizer))


@torch.no_grad()
def check_lm_head(model: PreTrainedModel) -> None:
    """Raise UserError for a model that scales or caps its logits after the LM head. mth samples and trains from the head's own output."""
    ids = torch.arange(3, device=model.device)[None]
    model_logits = model(input_ids=ids, use_cache=False).logits
    head_logits = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(model_logits.float(), head_logits.float(), rtol=1e-2, atol=1e-2):
        raise UserError(
            f"model.path: {type(model).__name__} scales or caps its logits after the LM head, which mth does not; choose another model"
        )
