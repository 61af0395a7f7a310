"""Decoding steps, from a token per row to the logits of the next: over a cache that grows, or over buffers of fixed shape."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from mth.rollout.hf.kv import GrowingLayer, growing_layers, spare_positions
from mth.rollout.hf.prefill import forward

MIN_RUNNING_SHARE = 0.9  # finished rows leave the batch once a smaller share of its rows is still running
MIN_RUNNING_SHARE_FIXED = 0.5  # the same where each new number of rows is captured anew
MIN_CAPTURED_TOKENS = 16  # a capture takes about as long as a few tokens: fewer than these are not worth one
ALIGNMENT = 16  # positions: attention kernels copy a mask whose rows are not aligned

Step = Callable[[], torch.Tensor]
Capture = Callable[[Step], Step | None]  # makes a faster function with the same effect, or none


class GrowingSteps:
    """Each step attends to the valid positions of a growing cache.

    lengths: prompt lengths [B]. mask: False at padding, [B, prompt + reply] or [B, 1, 1, prompt + reply]; None if there is no padding.
    width: positions that the prompts take.
    """

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, lengths: torch.Tensor, mask: torch.Tensor | None, width: int) -> None:
        self.model, self.cache, self.lengths, self.mask, self.width, self.done = model, cache, lengths, mask, width, 0

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token per row, [B]."""
        mask = None if self.mask is None else self.mask[..., : self.width + self.done + 1]
        hidden = forward(self.model, token.unsqueeze(1), mask, (self.lengths + self.done).unsqueeze(1), self.cache)
        self.done += 1
        return self.model.get_output_embeddings()(hidden)

    def few(self, running: int, rows: int) -> bool:
        """Whether so few of the rows are running that the others should leave."""
        return running < MIN_RUNNING_SHARE * rows

    def keep(self, order: torch.Tensor) -> None:
        """Keep these rows, after they have been kept in the cache."""
        self.lengths, self.mask = self.lengths[order], None if self.mask is None else self.mask[order]


class FixedSteps:
    """Each step attends to a whole cache of fixed shape, under a mask: only the contents of its tensors change, so it can be captured.

    lengths: prompt lengths [B]. mask [B, 1, 1, prompt + reply]: False at padding. Whenever the cache is full or has lost rows, the step is
    prepared and captured anew. The cache must have full attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        lengths: torch.Tensor,
        mask: torch.Tensor,
        capture: Capture,
    ) -> None:
        self.model, self.cache, self.lengths, self.prompt_mask, self.capture = model, cache, lengths, mask, capture
        self.length, self.done = cache.get_seq_length(), 0
        self.last = mask.shape[-1] - 1  # positions that will ever be filled: the last token is not read
        self.capacity, self.prepared = 0, False
        self.captured: Step | None = None

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token per row, [B]. The next call overwrites them."""
        if not self.prepared or self.length == self.capacity:
            self._prepare()
        self.token.copy_(token.unsqueeze(1))
        self.positions += 1
        self.slot.fill_(self.length)
        self.mask[..., self.length] = True
        logits = self._forward() if self.captured is None else self.captured()
        self.done, self.length = self.done + 1, self.length + 1
        for layer in growing_layers(self.cache):
            layer.length = self.length
        return logits

    def few(self, running: int, rows: int) -> bool:
        """Whether so few of the rows are running that the others should leave."""
        return running <= MIN_RUNNING_SHARE_FIXED * rows and self.last - self.length >= MIN_CAPTURED_TOKENS

    def keep(self, order: torch.Tensor) -> None:
        """Keep these rows, after they have been kept in the cache."""
        self.lengths, self.prompt_mask, self.prepared = self.lengths[order], self.prompt_mask[order], False

    def _prepare(self) -> None:
        """Make room, make the step's tensors, and capture the step."""
        self.captured = None  # frees what an older graph holds
        if self.length >= self.capacity:
            wanted = min(self.length + 1 + spare_positions(self.length + 1), self.last)
            self.capacity = -(-wanted // ALIGNMENT) * ALIGNMENT
        rows = self.lengths.numel()
        self.token = self.lengths.new_zeros(rows, 1)
        self.positions = (self.lengths + self.done - 1).unsqueeze(1)
        self.slot = self.lengths.new_full((1,), self.length)
        self.mask = self.prompt_mask.new_zeros(rows, 1, 1, self.capacity)
        self.mask[..., : self.length] = self.prompt_mask[..., : self.length]
        self.fixed = copy.copy(self.cache)
        self.fixed.layers = []
        for layer in growing_layers(self.cache):
            layer.reserve(self.capacity)
            self.fixed.layers.append(FixedLayer(layer, self.slot))
        self.prepared = True
        if self.last - self.length >= MIN_CAPTURED_TOKENS:
            self.captured = self.capture(self._forward)

    def _forward(self) -> torch.Tensor:
        hidden = forward(self.model, self.token, self.mask, self.positions, self.fixed)
        return self.model.get_output_embeddings()(hidden)


class FixedLayer(DynamicLayer):
    """Writes one position of a GrowingLayer, whose index is a tensor [1], and returns all positions."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: GrowingLayer, slot: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.slot, self.is_initialized = layer.keys, layer.values, slot, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values [B, key heads, 1, D]. Returns those of the whole capacity."""
        with _any_order():
            self.keys.index_copy_(2, self.slot, key_states)
            self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values


@contextmanager
def _any_order() -> Iterator[None]:
    """Allow kernels without a fixed order, where every element is written once. On a GPU, the others would sort the indices at every write."""
    enabled, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
