"""Which attention of transformers' registry a model runs with."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


def uses_registry(model: PreTrainedModel) -> bool:
    """Whether the model looks its attention up in transformers' registry, where another function can take the place of `sdpa`."""
    return bool(model._supports_attention_backend)


@contextmanager
def running_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run the model with the attention registered as `name` inside the block."""
    before = model.config._attn_implementation
    if before == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
