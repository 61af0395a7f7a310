"""Writes a model as a folder that transformers and vLLM read."""

import os
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mth.foundations.errors import require
from mth.foundations.files import read_json, write_text
from mth.models.tokenizer import as_written

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


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
