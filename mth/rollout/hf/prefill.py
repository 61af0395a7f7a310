"""Prefill: computes the key-value cache of a batch of prompts, each shared prefix once."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from mth.rollout.hf.kv import concat_caches, growing_cache, has_full_attention, select_rows

MAX_PREFILL_TOKENS_CPU = 2048  # padded prompt tokens per forward pass
MAX_PREFILL_TOKENS_GPU = 32768
MAX_SHARED_PREFILL_SHARE = 0.85  # prefixes are shared only if at most this share of the prompt tokens is then left to compute

Prompt = tuple[int, ...]


def prefill(model: PreTrainedModel, prompts: Sequence[Prompt]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """Run the model over distinct prompts that are sorted by length.

    Returns their cache, the last hidden states [P, H], and the attention mask [P, T], which is 0 at padding.

    A prefix that several prompts share runs once. The rest runs in batches of similar length: short prompts get little padding, and
    activations stay in the CPU's cache. All rows end at the same position. Padding is on the left, or after the shared prefix.
    """
    device, prefix_cache = model.device, growing_cache(model.config)
    can_split = has_full_attention(prefix_cache)
    shared = shared_prefix_length(prompts) if can_split else 0
    limit = (MAX_PREFILL_TOKENS_CPU if device.type == "cpu" else MAX_PREFILL_TOKENS_GPU) if can_split else None
    prefixes = list(dict.fromkeys(prompt[:shared] for prompt in prompts))
    row_of = {prefix: row for row, prefix in enumerate(prefixes)}
    if shared:
        positions = torch.arange(shared, device=device).expand(len(prefixes), -1)
        forward(model, torch.tensor(prefixes, device=device), None, positions, prefix_cache)
    caches, hiddens, masks = [], [], []
    for batch in prefill_batches(prompts, shared, limit):
        rests = [prompt[shared:] for prompt in batch]
        width = len(rests[-1])
        ids = torch.tensor([[0] * (width - len(rest)) + list(rest) for rest in rests], device=device)
        rest_mask = torch.tensor([[0] * (width - len(rest)) + [1] * len(rest) for rest in rests], device=device)
        attention_mask = torch.cat([rest_mask.new_ones(len(batch), shared), rest_mask], 1)
        if shared:
            cache = select_rows(prefix_cache, torch.tensor([row_of[prompt[:shared]] for prompt in batch], device=device))
        else:
            cache = growing_cache(model.config)
        positions = shared + (rest_mask.cumsum(1) - 1).clamp(min=0)
        padded = len(rests[0]) < width
        hiddens.append(forward(model, ids, attention_mask if padded else None, positions, cache))
        caches.append(cache)
        masks.append(attention_mask)
    width = len(prompts[-1])
    return concat_caches(caches), torch.cat(hiddens), torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks])


def shared_prefix_length(prompts: Sequence[Prompt]) -> int:
    """The prefix length that minimizes the tokens to compute if every distinct prefix of that length runs once.

    Returns 0 if more than MAX_SHARED_PREFILL_SHARE of the tokens would be left.
    """
    ordered = sorted(prompts)
    overlaps = np.array([common_prefix_length(a, b) for a, b in pairwise(ordered)], dtype=int)
    lengths = np.arange(min(map(len, prompts)))
    distinct = 1 + np.searchsorted(np.sort(overlaps), lengths)  # prefixes of each length: neighbours that overlap less differ
    tokens = distinct * lengths + sum(map(len, prompts)) - len(prompts) * lengths
    best = int(tokens.argmin())
    return best if tokens[best] < MAX_SHARED_PREFILL_SHARE * tokens[0] else 0


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that are equal."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def prefill_batches(prompts: Sequence[Prompt], shared: int, limit: int | None) -> Iterator[Sequence[Prompt]]:
    """Cut prompts, sorted by length, into batches of at most `limit` padded tokens after the first `shared`. One prompt may exceed it."""
    start = 0
    for end, prompt in enumerate(prompts):
        if limit is not None and end > start and (end + 1 - start) * (len(prompt) - shared) > limit:
            yield prompts[start:end]
            start = end
    yield prompts[start:]


def forward(
    model: PreTrainedModel,
    ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    positions: torch.Tensor,
    cache: DynamicCache,
) -> torch.Tensor:
    """Run the decoder and append to the cache. Returns the hidden states [B, H] of the last position.

    ids, positions: [B, T]. attention_mask: [B, past + T] or [B, 1, 1, past + T], false at padding; None if there is no padding.
    """
    output = model.base_model(input_ids=ids, attention_mask=attention_mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return output.last_hidden_state[:, -1]
