"""Checks that a model's logits are the output of its LM head, and its hidden states the head's input."""

from typing import Any

import torch
from transformers import PreTrainedModel

from mth.foundations.errors import UserError, first_line, require

LARGEST_LOGIT = 200.0  # in magnitude, where a cap shows: Gemma's is 30
TOLERANCE = 1e-2  # relative; both sides do the same arithmetic


@torch.no_grad()
def check_lm_head(model: PreTrainedModel) -> None:
    """Raise UserError for a model that scales or caps its logits after the LM head, or changes hidden states before it.

    mth samples and trains from the head's own output for the decoder's hidden states. A second pass enlarges the head's input: small logits
    pass a cap unchanged.
    """
    kind, decoder, head = type(model).__name__, model.base_model, model.get_output_embeddings()
    require(head is not None and decoder is not model, f"model.path: {kind} is no decoder with an LM head; choose another model")
    arguments = {"input_ids": torch.arange(3, device=model.device)[None], "use_cache": False}
    try:
        logits, expected = model(**arguments).logits.float(), head(decoder(**arguments).last_hidden_state).float()
        require(bool(torch.isfinite(logits).all()), f"model.path: the logits of {kind} are not finite in this model.dtype; choose another")
        large, expected_large = _with_larger_logits(model, arguments, LARGEST_LOGIT / expected.abs().amax().clamp(min=1e-6))
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"model.path: {kind} cannot be run as a decoder with an LM head ({first_line(error, 160)})") from error
    for got, wanted in ((logits, expected), (large, expected_large)):
        require(
            got.shape == wanted.shape and bool((got - wanted).norm() <= TOLERANCE * wanted.norm()),
            f"model.path: {kind} scales or caps its logits after the LM head, or changes its input, which mth does not; choose another model",
        )


def _with_larger_logits(model: PreTrainedModel, arguments: dict[str, Any], factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model with the head's input multiplied by `factor`. Returns its logits and the head's output, both fp32."""
    outputs: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hooks = [
        head.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factor.to(inputs[0].dtype), *inputs[1:])),
        head.register_forward_hook(lambda module, inputs, output: outputs.append(output.float())),
    ]
    try:
        return model(**arguments).logits.float(), outputs[0] if outputs else torch.empty(0)
    finally:
        for hook in hooks:
            hook.remove()
