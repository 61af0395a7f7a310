"""A key-value cache that is written in place, and attention that does not repeat it; both inside transformers, for any model that allows them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SPARE = 32  # positions of room to begin with
GROUPED = "sdpa_grouped"


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [B, heads, room, D], of which the first `length` positions count.

    transformers' DynamicLayer copies the whole cache for every token. Here room is allocated ahead, by half of what is there, so that a
    position is copied a few times at most and memory follows the longest sequence that is still running, not the token limit.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, heads, T, D]; returns views of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            room = end + max(SPARE, end // 2)
            self.keys, self.values = self._moved(self.keys, room), self._moved(self.values, room)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Positions so far."""
        return self.length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        room = self.keys.shape[2]
        self.keys, self.values = self._moved(self.keys, room, indices), self._moved(self.values, room, indices)

    def close_gaps(self, gaps: torch.Tensor, movers: torch.Tensor, count: int) -> None:
        """Keep the first `count` rows, after copying the rows `movers` over the rows `gaps`: no other row is touched."""
        for tensor in (self.keys, self.values):
            tensor[gaps, :, : self.length] = tensor[movers, :, : self.length]
        self.keys, self.values = self.keys[:count], self.values[:count]

    def _moved(self, old: torch.Tensor, room: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        used = old[:, :, : self.length]
        used = used if rows is None else used[rows]
        new = old.new_empty(used.shape[0], old.shape[1], room, old.shape[3])
        new[:, :, : self.length] = used
        return new


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """transformers' cache for this model with its plain layers replaced; sliding windows, linear attention and others keep their own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def plain_layers(cache: DynamicCache) -> list[GrowingLayer]:
    """The layers of a cache that is_plain."""
    return [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all keys, so that one mask serves all, gaps in a row do no harm and rows can be cut and joined."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def fork(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A new cache with these rows of a plain one."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    new.batch_select_indices(rows)
    return new


def join(caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of plain caches in one, aligned at their ends; what lies before a shorter one is to be masked."""
    if len(caches) == 1:
        return caches[0]
    new = copy.copy(caches[0])
    new.layers = [joined(layers) for layers in zip(*map(plain_layers, caches), strict=True)]
    return new


def joined(layers: Sequence[GrowingLayer]) -> GrowingLayer:
    """See join."""
    new = copy.copy(layers[0])
    new.length = max(layer.length for layer in layers)
    rows = sum(layer.keys.shape[0] for layer in layers)
    room = max(layer.keys.shape[2] for layer in layers)
    new.keys, new.values = (t.new_empty(rows, t.shape[1], room, t.shape[3]) for t in (layers[0].keys, layers[0].values))
    row = 0
    for layer in layers:
        end, gap = row + layer.keys.shape[0], new.length - layer.length
        for whole, piece in ((new.keys, layer.keys), (new.values, layer.values)):
            whole[row:end, :, gap : new.length] = piece[:, :, : layer.length]
            whole[row:end, :, :gap] = 0  # never seen, but no mask helps against a chance NaN
        row = end
    return new


def drop(cache: DynamicCache, done: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Take finished rows out: done [B] marks them, keep holds the indices of the others. Returns the old index of each remaining row."""
    count = keep.numel()
    order = torch.arange(count, device=done.device)
    gaps, movers = done[:count].nonzero().squeeze(1), keep[keep >= count]
    order[gaps] = movers
    if is_plain(cache):
        for layer in plain_layers(cache):
            layer.close_gaps(gaps, movers, count)
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
    """transformers' `sdpa` attention; for one query token, the heads that share a key head become the rows of one product.

    query [B, heads, T, D], key and value [B, key heads, past + T, D]; returns [B, T, heads, D]. transformers repeats keys and values in
    memory for every head, at every token, which costs more than all else when the cache is long and the model small.
    """
    batch, heads, length, _ = query.shape
    shared = key.shape[1]
    special = kwargs.get("position_bias") is not None or kwargs.get("cache") is not None
    if length > 1 or heads == shared or special or (attention_mask is not None and attention_mask.shape[1] != 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    rows = query.reshape(batch, shared, heads // shared, -1)
    output = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
    return output.reshape(batch, 1, heads, -1), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def grouped_heads(model: PreTrainedModel) -> Iterator[None]:
    """Within, a model that runs `sdpa` through transformers' attention interface runs `grouped_attention`; any other is left alone."""
    if not model._supports_attention_backend or model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
