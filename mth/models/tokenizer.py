"""Loads tokenizers and their chat templates."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError, first_line
from mth.foundations.files import read_json
from mth.models.chat import complete_template, turn_end
from mth.models.shapes import model_source

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")  # names of the class that takes a tokenizer.json as it is


def tokenizer_class(source: str) -> Any:
    """Return the class that loads the tokenizer: PreTrainedTokenizerFast if a local folder declares a generic tokenizer, else AutoTokenizer.

    For a generic tokenizer, AutoTokenizer takes the class of the model type (for `qwen2`, Qwen's). That class silently replaces the
    word-splitting rule of the folder's tokenizer.json, unless the folder was saved by `save_model`.
    """
    if (Path(source) / "tokenizer.json").is_file() and read_json(Path(source) / "tokenizer_config.json").get("tokenizer_class") in GENERIC:
        return PreTrainedTokenizerFast
    return AutoTokenizer


def as_written(settings: dict[str, Any]) -> str:
    """Return the text of a tokenizer_config.json with which AutoTokenizer takes the tokenizer.json beside it as it is.

    settings: what `save_pretrained` wrote. The class of a model type rebuilds the tokenizer from its vocabulary and merges with the word
    splitting of that model type. The argument `trust_remote_code`, which `from_pretrained` also reads from this file, prevents that. There is
    no code in the folder to trust. transformers 4 knows the generic class only by its older name.
    """
    name = settings.get("tokenizer_class")
    kept = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}  # how the folder was loaded
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast" if name in GENERIC else name, "trust_remote_code": True}
    return json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model.tokenizer`, or the model's own. Adds a ChatML template if it has none. Raises UserError naming the key."""
    source = config.tokenizer or model_source(config)
    try:
        tokenizer = tokenizer_class(source).from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"no tokenizer in {source}: give model.tokenizer=<hub id or folder> ({first_line(error, 160)})") from error
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
