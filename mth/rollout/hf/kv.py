"""A key-value cache that is written in place, and attention that does not repeat it per head. Both plug into transformers."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mth.models.attention import running_attention, uses_registry

MIN_SPARE_POSITIONS = 32  # allocated ahead whenever a cache grows
GROUPED_ATTENTION = "sdpa_grouped"  # name of `grouped_attention` in transformers' registry


class GrowingLayer(DynamicLayer):
    """Keys and values [B, key heads, capacity, D] of one layer. The first `length` positions are valid.

    transformers' DynamicLayer copies the whole cache at every token. This one allocates half as much again whenever it is full, so each
    position is copied a few times at most. Memory follows the longest running sequence, not the token limit.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take dtype, device and shape from the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, key heads, T, D]. Returns views [B, key heads, length, D] of all valid positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self._resize(end + spare_positions(end))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reserve(self, capacity: int) -> None:
        """Allocate exactly `capacity` positions. Those that are not valid yet are 0: a NaN there would get past a mask."""
        if capacity != self.keys.shape[2]:
            self._resize(capacity)
        for tensor in (self.keys, self.values):
            tensor[:, :, self.length :] = 0

    def get_seq_length(self) -> int:
        """Number of valid positions."""
        return self.length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order. A row may occur several times."""
        capacity = self.keys.shape[2]
        self.keys, self.values = self._reallocated(self.keys, capacity, indices), self._reallocated(self.values, capacity, indices)

    def compact(self, gaps: torch.Tensor, movers: torch.Tensor, count: int) -> None:
        """Copy the rows `movers` over the rows `gaps`, then keep the first `count` rows. No other row is copied."""
        for tensor in (self.keys, self.values):
            tensor[gaps, :, : self.length] = tensor[movers, :, : self.length]
        self.keys, self.values = self.keys[:count], self.values[:count]

    def _resize(self, capacity: int) -> None:
        self.keys = self._reallocated(self.keys, capacity)
        self.values = self._reallocated(self.values, capacity)

    def _reallocated(self, old: torch.Tensor, capacity: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        valid = old[:, :, : self.length]
        valid = valid if rows is None else valid[rows]
        new = old.new_empty(valid.shape[0], old.shape[1], capacity, old.shape[3])
        new[:, :, : self.length] = valid
        return new


def spare_positions(length: int) -> int:
    """Positions that are allocated ahead of a cache of this length."""
    return max(MIN_SPARE_POSITIONS, length // 2)


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for this model, with a GrowingLayer for each full-attention layer.

    Other layers (sliding window, linear attention) keep transformers' own cache.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def has_full_attention(cache: DynamicCache) -> bool:
    """Return True if every layer attends to all positions.

    Only then can one mask serve all layers, may rows contain padding between tokens, and can rows be split off and concatenated.
    """
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def growing_layers(cache: DynamicCache) -> list[GrowingLayer]:
    """The layers of a cache with full attention."""
    return [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]


def select_rows(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """Return a new cache with copies of these rows. The cache must have full attention."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    new.batch_select_indices(rows)
    return new


def concat_caches(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Concatenate caches with full attention along the batch, aligned at their last positions.

    Shorter ones get zeros on the left, which the attention mask must exclude.
    """
    if len(caches) == 1:
        return caches[0]
    new = copy.copy(caches[0])
    new.layers = [concat_layers(layers) for layers in zip(*map(growing_layers, caches), strict=True)]
    return new


def concat_layers(layers: Sequence[GrowingLayer]) -> GrowingLayer:
    """Concatenate one layer of several caches. See concat_caches."""
    new = copy.copy(layers[0])
    new.length = max(layer.length for layer in layers)
    rows = sum(layer.keys.shape[0] for layer in layers)
    capacity = max(layer.keys.shape[2] for layer in layers)
    new.keys, new.values = (t.new_empty(rows, t.shape[1], capacity, t.shape[3]) for t in (layers[0].keys, layers[0].values))
    row = 0
    for layer in layers:
        end, gap = row + layer.keys.shape[0], new.length - layer.length
        for whole, piece in ((new.keys, layer.keys), (new.values, layer.values)):
            whole[row:end, :, gap : new.length] = piece[:, :, : layer.length]
            whole[row:end, :, :gap] = 0  # a NaN in uninitialized memory would get past the mask
        row = end
    return new


def remove_finished_rows(cache: DynamicCache, finished: torch.Tensor, running: torch.Tensor) -> torch.Tensor:
    """Remove finished rows from the cache. Returns the old index of each remaining row.

    finished: mask [B]. running: indices of the other rows. With full attention, running rows move into the gaps and nothing else is copied.
    """
    count = running.numel()
    order = torch.arange(count, device=finished.device)
    gaps, movers = finished[:count].nonzero().squeeze(1), running[running >= count]
    order[gaps] = movers
    if has_full_attention(cache):
        for layer in growing_layers(cache):
            layer.compact(gaps, movers, count)
    else:
        cache.batch_select_indices(order)
    return order


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute transformers' `sdpa` attention. For one query token, query heads that share a key head become rows of one product.

    query: [B, heads, T, D]. key, value: [B, key heads, past + T, D]. Returns [B, T, heads, D]. transformers copies keys and values for every
    query head at every token. With a long cache and a small model, that copy costs more than everything else.
    """
    batch, heads, length, _ = query.shape
    key_heads = key.shape[1]
    special = kwargs.get("position_bias") is not None or kwargs.get("cache") is not None
    if length > 1 or heads == key_heads or special or (attention_mask is not None and attention_mask.shape[1] != 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    rows = query.reshape(batch, key_heads, heads // key_heads, -1)
    output = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
    return output.reshape(batch, 1, heads, -1), None


AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)


def can_group_attention(model: PreTrainedModel) -> bool:
    """Whether the model uses `sdpa` through transformers' interface, where `grouped_attention` can take its place."""
    return uses_registry(model) and model.config._attn_implementation in ("sdpa", GROUPED_ATTENTION)


def use_grouped_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Run the model with `grouped_attention` inside the block. Does nothing where that cannot be."""
    return running_attention(model, GROUPED_ATTENTION) if can_group_attention(model) else nullcontext()
