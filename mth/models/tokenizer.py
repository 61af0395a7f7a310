"""Loads tokenizers and their chat templates."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import read_json
from mth.models.chat import complete_template, turn_end
from mth.models.gguf import converted
from mth.models.save import GENERIC
from mth.models.shapes import how_to_copy, local_copy, model_source


def tokenizer_class(source: str) -> Any:
    """Return the class that loads the tokenizer: PreTrainedTokenizerFast if a local folder declares a generic tokenizer, else AutoTokenizer.

    For a generic tokenizer, AutoTokenizer takes the class of the model type (for `qwen2`, Qwen's). That class silently replaces the
    word-splitting rule of the folder's tokenizer.json, unless the folder was saved by `save_model`.
    """
    if (Path(source) / "tokenizer.json").is_file() and read_json(Path(source) / "tokenizer_config.json").get("tokenizer_class") in GENERIC:
        return PreTrainedTokenizerFast
    return AutoTokenizer


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model.tokenizer`, or the model's own. Adds a ChatML template if it has none. Raises UserError naming the key."""
    source = converted(local_copy(config.tokenizer)) if config.tokenizer else model_source(config)
    try:
        tokenizer = tokenizer_class(source).from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"no tokenizer in {source}: give model.tokenizer=<hub id or folder> ({first_line(error, 160)})"
        raise UserError(message + how_to_copy(source)) from error
    if len(tokenizer) == 0 or not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UserError(f"no tokenizer in {source}: give model.tokenizer=<hub id or folder>")
    complete_template(tokenizer, source)
    return tokenizer


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return all tokens that end a completion: end tokens of the tokenizer, the model and the chat template, and ChatML's.

    Raises UserError if there is none.
    """
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, model.generation_config.eos_token_id, model.config.eos_token_id, turn_end(tokenizer)):
        found.update(value if isinstance(value, list) else [value] if value is not None else [])
    for text in ("<|im_end|>", "<|endoftext|>"):
        token = tokenizer.convert_tokens_to_ids(text)
        if isinstance(token, int) and tokenizer.convert_ids_to_tokens(token) == text:  # a missing one has the id of the unknown token
            found.add(token)
    if not found:
        raise UserError("the tokenizer has no end-of-text token; give model.tokenizer=<one that has>")
    return frozenset(found)


def stop_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> frozenset[int]:
    """Return the ids of all tokens that hold `text`, for instance of `\\n`, `\\n\\n` and `;\\n` for a line break.

    A reply ends with the first of them. Raises UserError if no token is the text itself: a reply could then end without any of them.
    """
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    require(text in texts, f"task.stop={text!r} is not one token of this tokenizer, so no token ends a reply with it; give another text")
    return frozenset(index for index, token in enumerate(texts) if text in token)
