"""Loads tokenizers and their chat templates."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError, first_line
from mth.models.shapes import model_source

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_class(source: str) -> Any:
    """Return the class that loads the tokenizer: PreTrainedTokenizerFast if a local folder declares a generic tokenizer, else AutoTokenizer.

    For a generic tokenizer, AutoTokenizer would take the class of the model type (for `qwen2`, Qwen's). That class silently replaces the
    pre-tokenizer of the folder's tokenizer.json.
    """
    config = Path(source) / "tokenizer_config.json"
    if config.is_file() and (Path(source) / "tokenizer.json").is_file():
        name = json.loads(config.read_text()).get("tokenizer_class")
        if name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast
    return AutoTokenizer


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model.tokenizer`, or the model's own. Adds a ChatML template if it has none. Raises UserError naming the key."""
    source = config.tokenizer or model_source(config)
    try:
        tokenizer = tokenizer_class(source).from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"no tokenizer in {source}: give model.tokenizer=<hub id or folder> ({first_line(error, 160)})") from error
    if len(tokenizer) == 0 or not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UserError(f"no tokenizer in {source}: give model.tokenizer=<hub id or folder>")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    return tokenizer


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return all tokens that end a completion: end tokens of the tokenizer and the model, and ChatML's. Raises UserError if there is none."""
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
