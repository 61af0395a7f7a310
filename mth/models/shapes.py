"""The shape of a model, found without loading its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from mth.config.choices import Init
from mth.config.schema import ModelConfig
from mth.foundations.errors import UserError, first_line
from mth.foundations.paths import ASSETS
from mth.tickets.indices import Shapes

HEAD_KEYS = ("head_dim", "hidden_size", "num_attention_heads")


def model_source(config: ModelConfig) -> str:
    """Return the folder or hub id of the weights: `model.path`, or the model that mth ships under `model.name`. Raises UserError if none."""
    if config.path is not None:
        return config.path
    packaged = ASSETS / config.name
    if not packaged.is_dir():
        raise UserError(f"model.name={config.name} is not shipped with mth; give model.path=<hub id or local folder>")
    return str(packaged)


def architecture(config: ModelConfig) -> PretrainedConfig:
    """Return transformers' configuration of the model, with dropout set to 0.

    mth ships the configurations of the published Qwen2.5 models, so random weights need no download. Raises UserError if there is none.
    """
    source = model_source(config)
    packaged = ASSETS / config.name
    if config.init is Init.random and not Path(source).is_dir() and (packaged / "config.json").is_file():
        source = str(packaged)
    try:
        shape = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={source}: no model configuration found ({first_line(error, 160)})") from error
    # Activation checkpointing needs training mode, where dropout would be active.
    for key, value in shape.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(shape, key, 0.0)
    return shape


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Return the shape of every parameter tensor by name, tied ones once. Allocates no weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture(config))
    model.tie_weights()
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def head_size(shape: PretrainedConfig | Mapping[str, Any]) -> int:
    """Return the size of an attention head. shape: transformers' configuration of the model, or the contents of its config.json."""
    values: Mapping[str, Any] = shape if isinstance(shape, Mapping) else {key: getattr(shape, key, None) for key in HEAD_KEYS}
    return values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
