"""Writes a model as a folder that transformers and vLLM read."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mth.foundations.errors import require
from mth.foundations.files import read_json, write_text

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")  # names of the class that takes a tokenizer.json as it is
PROBE = "Sort JamesSmith's and AdaLovelace's <x_y>,  12 + 345 = 357\n\n\\boxed{4}// new word! nai\u0308ve caf\u00e9 \u65e5\u672c"


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer. Files have the mode that the umask gives a new file, usually 0644.

    Raises UserError if `AutoTokenizer` does not read the folder's tokenizer as it was saved.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    write_text(settings, as_written(read_json(settings)))
    mode = 0o666 & ~_umask()
    for file in folder.iterdir():
        if file.is_file():  # safetensors makes its files readable to their owner alone
            file.chmod(mode)
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    require(
        again(PROBE)["input_ids"] == tokenizer(PROBE)["input_ids"],
        f"{folder}: AutoTokenizer reads another tokenizer than was saved there; load it with PreTrainedTokenizerFast.from_pretrained",
    )


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


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
