"""Loads weights and refuses files that do not hold every weight of the model, or hold more."""

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mth.foundations.errors import UserError, first_line, require
from mth.models.quiet import quiet_transformers
from mth.models.shapes import shapes_of

NAMED_KEYS = 3  # how many keys a message names


def load_weights(source: str, shape: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load the weights of a folder or hub id into a model of this shape. Raises UserError unless each weight comes from the files and is finite.

    transformers gives missing weights random values and ignores unexpected ones, with a warning.
    """
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=shape,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in `found`; otherwise transformers raises an error that names none
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.path={source}: weights cannot be loaded ({first_line(error, 160)})") from error
    model, found = loaded
    check_keys(source, type(model).__name__, found)
    loose = {name: parameter.shape for name, parameter in model.named_parameters()}.keys() - shapes_of(shape).keys()
    require(
        not loose,
        f"model.path={source}: config.json ties {_first(sorted(loose))} to another weight, but the file holds other values for it; "
        "set tie_word_embeddings to false there, or choose another model",
    )
    check_finite(source, model)
    return model


def check_keys(source: str, kind: str, found: dict[str, Any]) -> None:
    """Raise UserError if weights were missing, unexpected or of another size. found: transformers' loading information. kind: model class."""
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    sizes = [f"{name} {list(got)} instead of {list(wanted)}" for name, got, wanted in sorted(found["mismatched_keys"])]
    parts = {"missing": missing, "unexpected": unexpected, "of another size": sizes, "not read": found["error_msgs"]}
    if not any(parts.values()):
        return
    remedy = "give the folder of the whole model that belongs to its config.json"
    if prefix := foreign_prefix(missing, unexpected):
        remedy = f"remove the prefix {prefix} from the keys of the file"
    faults = "; ".join(f"{what}: {_first(names)}" for what, names in parts.items() if names)
    raise UserError(f"model.path={source}: the weights are not those of {kind} ({faults}); {remedy}")


def foreign_prefix(missing: list[str], unexpected: list[str]) -> str:
    """Return what stands before missing keys in the unexpected ones, for instance `_orig_mod.` of a compiled model; empty if nothing does."""
    return next((key.removesuffix(name) for name in missing for key in unexpected if key.endswith(f".{name}")), "")


def check_finite(source: str, model: PreTrainedModel) -> None:
    """Raise UserError naming the first weight that holds a NaN or an infinite value."""
    for name, parameter in model.named_parameters():
        least, most = torch.aminmax(parameter.detach())
        require(
            bool(torch.isfinite(least) and torch.isfinite(most)),
            f"model.path={source}: the weight {name} holds NaN or infinite values; choose another model",
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_KEYS} more" if len(names) > NAMED_KEYS else ""
    return ", ".join(map(str, names[:NAMED_KEYS])) + more
