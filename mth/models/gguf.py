"""Reads GGUF files, the format of llama.cpp. A file is converted once into a plain Hugging Face folder, which is used from then on."""

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mth.foundations.errors import UserError, first_line, require
from mth.foundations.files import digest
from mth.models.quiet import quiet_transformers
from mth.models.save import save_model

MAGIC = b"GGUF"
DIGITS = 16  # how many of the file's sha256 name its folder in the cache
# Ways of splitting words that set each digit apart, by their names in GGUF files. transformers would split them as GPT-2 does.
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def is_gguf(source: str) -> bool:
    """Whether `source` is the path of a GGUF file that exists."""
    return source.lower().endswith(".gguf") and os.path.isfile(source)


def converted(source: str) -> str:
    """Return the folder in the cache that holds the model of a GGUF file, converted now if it was not before; any other source as it is.

    The cache is below $XDG_CACHE_HOME, or below ~/.cache. Raises UserError as `convert` does.
    """
    if not is_gguf(source):
        return source
    file = Path(source)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache_home / "mth" / "gguf" / digest(file)[:DIGITS] / file.stem
    if not folder.is_dir():
        convert(file, folder, "make room there, or set XDG_CACHE_HOME to another folder")
    return str(folder)


def convert(file: Path, folder: Path, remedy: str = "make room there") -> None:
    """Write the model and the tokenizer of a GGUF file as a plain folder: fp32 weights, no quantization. Says so in a line.

    The folder is complete or absent, also when two processes convert at once. remedy: what to do if it cannot be written. Raises UserError,
    naming the file or the folder, if a package is missing, the file is damaged or of an unknown kind, or the disk is full.
    """
    with open(file, "rb") as start:
        require(start.read(len(MAGIC)) == MAGIC, f"{file} is no GGUF file; give another file")
    require_packages(file)
    print(f"converting {file.name} once; kept in {folder}", file=sys.stderr)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            alone = Path(temporary, "alone", "model.gguf")  # transformers would also read a tokenizer that lies beside the file
            alone.parent.mkdir()
            alone.symlink_to(file.resolve())
            model, tokenizer = _read(alone, file)
            made = Path(temporary, folder.name)
            made.mkdir()
            save_model(model, tokenizer, made)
            _put(made, folder)
    except UserError:
        raise
    except Exception as error:  # OSError, an error of safetensors, or a plain Exception of tokenizers
        raise UserError(f"{folder} cannot be written ({first_line(error, 160)}); {remedy}") from error
    finally:
        with suppress(OSError):  # the folder above stays if anything is in it
            folder.parent.rmdir()


def _put(made: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process has just made the same one."""
    for path in made.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def require_packages(file: Path) -> None:
    try:
        import accelerate  # noqa: F401, transformers refuses to read the file without it
        import gguf  # noqa: F401
        from transformers import GgufConfig  # noqa: F401
    except ImportError as error:
        raise UserError(f"{file}: to read a GGUF file, pip install 'sparse-rlvr[gguf]' ({first_line(error, 160)})") from error


def _read(alone: Path, file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model, fp32 on the CPU, and tokenizer of a GGUF file. alone: a link to `file` in a folder of its own. Raises UserError."""
    from gguf import GGUFReader
    from transformers import GgufConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(alone.parent), "gguf_file": alone.name, "trust_remote_code": False}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(**source)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
            )
        reader = GGUFReader(alone)
        entries = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        words = reader.fields.get("tokenizer.ggml.pre")
        if words is not None and words.contents() in DIGITS_APART:
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise UserError(f"{file} cannot be read as a language model ({first_line(error, 160)}); give another file") from error
    model, found = loaded
    _check_complete(file, model, found, entries)
    return _plain(model), tokenizer


def _check_complete(file: Path, model: PreTrainedModel, found: dict[str, Any], entries: dict[str, int]) -> None:
    """Raise UserError unless the file holds each weight of the model, and nothing more.

    found: transformers' loading information; it gives missing weights random values. entries: number of values by name of the file's
    tensors. transformers ignores some of them: `rope_freqs` is how Llama 3 spreads its positions, and without it the model is another one.
    """
    names = sorted(str(name) for what in found.values() for name in what)
    kind = type(model).__name__
    require(not names, f"{file} does not hold the weights of {kind} as they must be ({', '.join(names[:3])}); give another file")
    read = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    stored, extra = sum(entries.values()), ", ".join(name for name in entries if not name.startswith(("blk.", "token_embd", "output")))
    require(
        stored == read,
        f"{file} holds {stored:,} values{extra and f', among them {extra}'}, of which transformers reads {read:,} into {kind}; "
        "give the model's Hugging Face folder instead",
    )


def _plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return the same model without the mark of a quantized one, which `save_pretrained` refuses. It has the same weights in memory."""
    vars(loaded.config).pop("quantization_config", None)
    with torch.device("meta"):
        model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model
