"""A key-value cache that is written in place, for models that keep all keys and values; other layers stay as transformers has them."""

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE = 32  # positions of room to begin with


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [B, heads, room, D], of which the first `length` positions count.

    transformers' DynamicLayer copies the whole cache for every token. Here room is allocated ahead, by half of what is there, so that a
    position is copied a few times at most and memory follows the longest sequence that is still running, not the token limit.
    """

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
