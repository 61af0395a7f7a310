"""Micro-batches: rollouts laid out in rows of tokens, in which rollouts of one prompt may share it, so that it is computed once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from transformers import PreTrainedModel

from mth.algorithm.logprobs import Layout, completion_logprobs
from mth.rollout.conversation import Rollout
from mth.rollout.kv import growing_cache, is_plain

PAIRS = 2**25  # attended pairs that the masks of one micro-batch may hold


@dataclass
class MicroBatch:
    """ids, loss_mask [B, T], padded on the right; layout where rows hold several rollouts; the rest [N], one entry per sampled token, row by row."""

    ids: torch.Tensor
    loss_mask: torch.Tensor
    rollout_logprobs: torch.Tensor
    advantages: torch.Tensor
    layout: Layout | None = None
    ref_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class Row:
    """Rollouts, by index, that begin with the same `shared` tokens and stand behind them one after another. A single one shares nothing."""

    members: tuple[int, ...]
    shared: int
    tokens: int


def pair_cost(model: PreTrainedModel) -> float:
    """What a pair of tokens in attention costs with a mask, in units of a token's way through all weights of the decoder.

    Infinite where rows with several rollouts cannot be used: attention kernels or layers that take no mask, or positions that the model
    finds by itself. That is tried out on two short sequences.
    """
    config = model.config
    if not _takes_layouts(model):
        return float("inf")
    weights = sum(p.numel() for name, p in model.base_model.named_parameters() if p.dim() > 1 and "embed" not in name)
    return (
        4 * 2 * config.hidden_size * config.num_hidden_layers / (2 * weights)
    )  # products of q k and p v; attention runs at about half speed


@torch.no_grad()
def _takes_layouts(model: PreTrainedModel) -> bool:
    """Whether two sequences in one row get the log-probabilities that they get in rows of their own."""
    if model.config._attn_implementation != "sdpa" or not is_plain(growing_cache(model.config)):  # a sliding window, say
        return False
    device = model.device
    prompt, tails = [5, 3, 8, 1], ([2, 7, 4], [9, 6])
    alone = [torch.tensor([[*prompt, *tail]], device=device) for tail in tails]
    try:
        together = _rows([[*prompt, *tail] for tail in tails], [[False] * 4 + [True] * len(tail) for tail in tails], [Row((0, 1), 4, 9)])
        got, _ = completion_logprobs(model, together.ids.to(device), together.mask.to(device), 1.0, together.layout(device))
        expected = [completion_logprobs(model, ids, torch.arange(ids.shape[1], device=device)[None] >= 4, 1.0)[0] for ids in alone]
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return bool(torch.allclose(got, torch.cat(expected), atol=1e-3 if model.dtype == torch.float32 else 0.1))


def arrange(rollouts: Sequence[Rollout], cost: float, token_budget: int) -> list[Row]:
    """Rows for all rollouts; those of one prompt that stand together are cut into parts of the size that is cheapest and fits the budget."""
    rows = []
    for _, group in groupby(range(len(rollouts)), key=lambda i: rollouts[i].ids[: start_of(rollouts[i])]):
        members = sorted(group, key=lambda i: (-len(rollouts[i].ids), i))
        shared = start_of(rollouts[members[0]])
        tail = sum(len(rollouts[i].ids) for i in members) / len(members) - shared
        longest = len(rollouts[members[0]].ids) - shared
        room = (min(token_budget, math.isqrt(PAIRS)) - shared) // longest
        sizes = range(1, 1 + min(len(members), max(room, 1)))
        size = min(sizes, key=partial(_price, len(members), shared, tail, cost))  # the first, one, where every price is infinite
        for part in (members[i : i + size] for i in range(0, len(members), size)):
            common = shared if len(part) > 1 else 0
            rows.append(Row(tuple(part), common, common + sum(len(rollouts[i].ids) - common for i in part)))
    return rows


def _price(count: int, shared: int, tail: float, cost: float, size: int) -> float:
    """Of `count` rollouts in rows of `size`: a shared prompt saves tokens and, with a mask over the whole row, costs attended pairs."""
    tokens = shared + size * tail
    return math.ceil(count / size) * (tokens + cost * tokens**2 * (0.25 if size == 1 else 1))


def start_of(rollout: Rollout) -> int:
    """Number of tokens before the first sampled one."""
    return rollout.loss_mask.index(True)


def collate(
    rollouts: Sequence[Rollout], advantages: Sequence[float], token_budget: int, device: torch.device, cost: float = float("inf")
) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` padded tokens (one row at least), longest rows first so that padding is short.

    cost: see `pair_cost`; by default every rollout has a row of its own.
    """
    rows = sorted(arrange(rollouts, cost, token_budget), key=lambda row: (len(row.members) > 1, -row.tokens, row.members))
    ids, masks = [rollout.ids for rollout in rollouts], [rollout.loss_mask for rollout in rollouts]
    batches, start = [], 0
    while start < len(rows):
        width, several = rows[start].tokens, len(rows[start].members) > 1
        count = max(1, min(token_budget // width, PAIRS // width**2 if several else token_budget))
        chosen = [row for row in rows[start : start + count] if (len(row.members) > 1) == several]
        start += len(chosen)
        said = _rows(ids, masks, chosen)
        order = [i for row in chosen for i in row.members]
        logprobs = [p for i in order for p, sampled in zip(rollouts[i].logprobs, rollouts[i].loss_mask, strict=True) if sampled]
        weights = [advantages[i] for i in order for _ in range(rollouts[i].completion_tokens)]
        batches.append(
            MicroBatch(
                said.ids.to(device),
                said.mask.to(device),
                torch.tensor(logprobs, device=device),
                torch.tensor(weights, device=device),
                said.layout(device) if several else None,
            )
        )
    return batches


@dataclass(frozen=True)
class _Rows:
    """ids, mask, positions, previous, segment [B, T]. segment: 0 for what all of a row share, then 1, 2, ..., and -1 for padding."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    previous: torch.Tensor
    segment: torch.Tensor

    def layout(self, device: torch.device) -> Layout:
        segment = self.segment.to(device)
        key, query = segment[:, None, None, :], segment[:, None, :, None]
        width = segment.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        return Layout(self.positions.to(device), self.previous.to(device), causal & ((key == 0) | (key == query)))


def _rows(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], rows: Sequence[Row]) -> _Rows:
    """Lay out the sequences that the rows name."""
    shape = len(rows), max(row.tokens for row in rows)
    out = _Rows(
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, -1),
    )
    for line, row in enumerate(rows):
        end = 0
        for segment, member in enumerate(row.members):
            first = 0 if segment == 0 else row.shared  # the shared beginning is written with the first member
            count = len(ids[member]) - first
            place = slice(end, end + count)
            out.ids[line, place] = torch.tensor(ids[member][first:])
            out.mask[line, place] = torch.tensor(masks[member][first:])
            out.positions[line, place] = torch.arange(first, first + count)
            out.previous[line, place] = torch.arange(end - 1, end - 1 + count)
            out.previous[line, end] = first - 1
            out.segment[line, place] = segment + 1
            end += count
        out.segment[line, : row.shared] = 0
    return out
