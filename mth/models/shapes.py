"""The shape of a model, found without loading its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError, first_line, require
from mth.foundations.paths import ASSETS
from mth.models.gguf import converted
from mth.tickets.indices import Shapes

# Hub id -> folder, below the current one, that is used instead of the hub where it exists.
LOCAL_COPIES = {"HuggingFaceTB/SmolLM2-135M-Instruct": Path("models", "smollm2-135m")}

HEAD_KEYS = ("head_dim", "hidden_size", "num_attention_heads")
ROPES_OF_ONE_LENGTH = ("longrope", "dynamic")  # rope types with other frequencies beyond the original length

LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier", "logits_mup_width_multiplier")


def model_source(config: ModelConfig) -> str:
    """Return the folder or hub id that weights are loaded from. Converts a GGUF file that is new here.

    Raises UserError if there is no such model, or if its GGUF file cannot be converted.
    """
    return converted(model_files(config))


def model_files(config: ModelConfig) -> str:
    """Return what holds the model: a folder, a GGUF file or a hub id.

    It is `model.path` or the local copy of that hub id, or the model that mth ships under `model.name`. Raises UserError if none.
    """
    if config.path is not None:
        return local_copy(config.path)
    packaged = ASSETS / config.name
    if not packaged.is_dir():
        raise UserError(f"model.name={config.name} is not shipped with mth; give model.path=<hub id, local folder or GGUF file>")
    return str(packaged)


def local_copy(source: str) -> str:
    """Return the folder that stands for this hub id here, or `source` itself if there is none."""
    folder = LOCAL_COPIES.get(source)
    return str(folder) if folder is not None and folder.is_dir() else source


def how_to_copy(source: str) -> str:
    """Return what to type for a local copy of a hub id, as the end of an error's message; empty if there is no such way."""
    return "; without a hub: make smollm2 (or python -m mth.models.smollm2)" if source in LOCAL_COPIES else ""


def architecture(config: ModelConfig) -> PretrainedConfig:
    """Return transformers' configuration of the model, with dropout set to 0.

    mth ships the configurations of the published Qwen2.5 models, so random weights need no download. Raises UserError if there is none, or if
    it describes a model that mth cannot train.
    """
    source = model_source(config)
    packaged = ASSETS / config.name
    if config.init is Init.random and not Path(source).is_dir() and (packaged / "config.json").is_file():
        source = str(packaged)
    try:
        shape = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        shipped = "; without a hub, a plan can take model.init=random" if (packaged / "config.json").is_file() else ""
        reason = f"no model configuration found ({first_line(error, 160)}){how_to_copy(source)}{shipped}"
        raise UserError(f"model.path={source}: {reason}") from error
    check_architecture(shape, source)
    # Activation checkpointing needs training mode, where dropout would be active.
    for key, value in shape.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(shape, key, 0.0)
    return shape


def check_architecture(shape: PretrainedConfig, source: str) -> None:
    """Raise UserError for a model that is no causal language model of text alone, keeps a state, or whose logits are not its LM head's output.

    mth samples and trains from the head's own output, in chunks.
    """
    kind = shape.model_type
    require(type(shape) in MODEL_FOR_CAUSAL_LM_MAPPING, f"model.path={source}: {kind} is no causal language model; choose another model")
    require(shape.get_text_config() is shape, f"model.path={source}: {kind} has more parts than a language model; choose one of text alone")
    quantised = getattr(shape, "quantization_config", None)
    require(
        quantised is None,
        f"model.path={source}: its weights are quantised ({_method(quantised)}), which cannot be trained entry by entry; give the model in "
        "bfloat16 or float32",
    )
    require(
        not keeps_state(shape),
        f"model.path={source}: {kind} keeps a state beside or instead of keys and values (state-space, recurrent or hybrid), which mth does not "
        "roll out; choose a model with attention in every layer",
    )
    for key, neutral in [*((key, None) for key in LOGIT_CAPS), *((key, 1) for key in LOGIT_SCALES)]:
        value = getattr(shape, key, None)
        require(
            value is None or value == neutral,
            f"model.path={source}: {kind} scales or caps its logits after the LM head ({key}={value}), which mth does not; choose another model",
        )


def _method(quantised: Any) -> str:
    values = quantised if isinstance(quantised, Mapping) else getattr(quantised, "to_dict", dict)()
    return str(values.get("quant_method", "quantization_config"))


def keeps_state(shape: PretrainedConfig) -> bool:
    """Return True if a layer of the model remembers a sequence in something else than keys and values per position.

    Prompts could then share no prefix, and rows with padding would read it into the state.
    """
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(shape)]
    if model._is_stateful:
        return True
    try:
        layers = DynamicCache(config=shape).layers
    except (AttributeError, TypeError, ValueError):  # a configuration with other names; the check of the loaded model decides
        return False
    return not all(isinstance(layer, DynamicLayer) for layer in layers)


def usable_context(shape: PretrainedConfig) -> int:
    """Return the most tokens of prompt and completion that the model gives a meaning which does not depend on what follows.

    A longrope or dynamic rope changes its frequencies for all positions once a sequence exceeds the original length. Keys cached before then
    differ from those of a forward pass over the whole, so the context ends there. Raises UserError if the configuration states no length.
    """
    limit = getattr(shape, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise UserError(f"model.path: {shape.model_type} states no context length (max_position_embeddings); choose another model")
    ropes = getattr(shape, "rope_parameters", None) or {}
    for rope in [ropes] if "rope_type" in ropes else ropes.values():  # one, or one per type of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ROPES_OF_ONE_LENGTH:
            limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    return limit


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Return the shape of every parameter tensor by name, tied ones once. Allocates no weights."""
    return shapes_of(architecture(config))


def shapes_of(shape: PretrainedConfig) -> Shapes:
    """Return the shape of every parameter tensor by name, tied ones once, of a model with this configuration. Allocates no weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    model.tie_weights()
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def head_size(shape: PretrainedConfig | Mapping[str, Any]) -> int:
    """Return the size of an attention head. shape: transformers' configuration of the model, or the contents of its config.json."""
    values: Mapping[str, Any] = shape if isinstance(shape, Mapping) else {key: getattr(shape, key, None) for key in HEAD_KEYS}
    return values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
