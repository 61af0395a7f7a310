"""Micro-batches: rollouts packed into rows of tokens. Rollouts of one prompt may share a row, so that the prompt is computed once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, groupby

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from mth.foundations.errors import first_line
from mth.rollout.hf.kv import growing_cache, has_full_attention
from mth.rollout.player import Rollout
from mth.training.logprobs import Layout

MAX_ATTENDED_PAIRS = 2**25  # entries of the attention masks of one micro-batch, and of one row
# Time of an attended pair under a mask, relative to a token's way through the decoder's weights, in units of hidden size x layers / weights.
# CPU: multiply and add in q k and in p v, at half the speed of a matrix product. GPU: 3.6 ms of a layer of 1.5B for 6 rows of 2,530 tokens,
# beside 16.5 microseconds a token for 28 layers: what is left of an update of 0.796 s without head, attention and the ticket (docs/gpu.md).
PAIR_COST = {"cpu": 4.0, "cuda": 4.8}
# Time of a pair of a row without a mask, half of which is causal and left out, relative to that. GPU: 0.95 ms for 24 rows of 730 tokens.
CAUSAL_SHARE = {"cpu": 0.25, "cuda": 0.8}


@dataclass
class MicroBatch:
    """ids, loss_mask [B, T], padded on the right. layout: set if rows hold several rollouts. rollout_logprobs, advantages, ref_logprobs [N]: one entry
    per sampled token, row by row. members: indices of the rollouts, row by row. entropies: of the sampled tokens, in chunks; the update adds them.
    """

    ids: torch.Tensor
    loss_mask: torch.Tensor
    rollout_logprobs: torch.Tensor
    advantages: torch.Tensor
    layout: Layout | None = None
    ref_logprobs: torch.Tensor | None = None
    members: tuple[int, ...] = ()
    entropies: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """members: indices of the rollouts in a row. Their first `shared` tokens are equal and stored once, followed by the rest of each rollout.

    tokens: length of the row. A single rollout shares nothing.
    """

    members: tuple[int, ...]
    shared: int
    tokens: int


def attention_cost(model: PreTrainedModel) -> float:
    """Cost of one attended pair of tokens under a mask, relative to the cost of one token's forward pass through the decoder's weights.

    Infinite if the model cannot use rows with several rollouts; one line says why. A short trial finds out.
    """
    if (reason := _reason_not_to_share(model)) is not None:
        name = type(model).__name__
        tqdm.write(f"warning: model.path: updates compute each prompt once per rollout, not once per row, which is slower: {name} {reason}")
        return float("inf")
    return pair_cost(model, model.device.type)


def pair_cost(model: PreTrainedModel, device: str) -> float:
    """`attention_cost` of a model that can use shared rows, on a kind of device."""
    weights = sum(p.numel() for name, p in model.base_model.named_parameters() if p.dim() > 1 and "embed" not in name)
    return PAIR_COST.get(device, PAIR_COST["cuda"]) * model.config.hidden_size * model.config.num_hidden_layers / weights


def _reason_not_to_share(model: PreTrainedModel) -> str | None:
    """Why rollouts cannot share a row; None if they can."""
    if (kind := model.config._attn_implementation) != "sdpa":
        return f"runs with {kind} attention; sdpa is needed"
    if not has_full_attention(growing_cache(model.config)):
        return "has layers without full attention, for instance a sliding window"
    try:
        right, *wrong = _trial(model)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"takes no mask for pairs of tokens, or no positions ({first_line(error, 160)})"
    limit = 0.01 if model.dtype == torch.float32 else 0.25  # bfloat16 at realistic widths: about 0.05
    if right <= limit * min(wrong):
        return None
    errors = f"{right:.1g}, without the mask {wrong[0]:.1g}, without positions {wrong[1]:.1g}"
    return f"computes other hidden states for a shared row than for rows of their own (relative difference {errors})"


@torch.no_grad()
def _trial(model: PreTrainedModel) -> tuple[float, float, float]:
    """Differences between the hidden states of three sequences in one row and in separate rows, relative to the latter's norm.

    The first is that of the right layout. The others are of wrong ones: without the mask, and with all positions 0. Where the model ignores
    a part of the layout, the first equals one of the others, whatever the rounding error.
    """
    device, prompt, lengths = model.device, 16, (8, 5, 7)
    count = prompt + sum(lengths)
    tokens = [(i + 1) * model.config.vocab_size // (count + 1) for i in range(count)]  # from the whole vocabulary: first ids are often odd
    ends = [prompt + end for end in accumulate(lengths)]
    ids = [tokens[:prompt] + tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    packed = _fill_rows(ids, [[True] * len(row) for row in ids], [Row((0, 1, 2), prompt, count)])
    right = packed.layout(device)
    unmasked = torch.ones_like(right.attention).tril()

    def states(rows: torch.Tensor, **layout: torch.Tensor) -> torch.Tensor:
        return model.base_model(input_ids=rows.to(device), use_cache=False, **layout).last_hidden_state[0, prompt:].float()

    alone = torch.cat([states(torch.tensor([row])) for row in ids])

    def difference(positions: torch.Tensor, attention: torch.Tensor) -> float:
        return float((states(packed.ids, position_ids=positions, attention_mask=attention) - alone).norm() / alone.norm())

    return (
        difference(right.positions, right.attention),
        difference(right.positions, unmasked),
        difference(torch.zeros_like(right.positions), right.attention),
    )


def pack_rows(rollouts: Sequence[Rollout], cost: float, token_budget: int, causal: float = CAUSAL_SHARE["cpu"]) -> list[Row]:
    """Rows for all rollouts. Neighbours with the same prompt share rows of the cheapest size that fits into `token_budget` tokens.

    cost: see `attention_cost`. causal: the share of it that a pair of a row without a mask costs, see CAUSAL_SHARE.
    """
    rows = []
    for _, group in groupby(range(len(rollouts)), key=lambda i: rollouts[i].ids[: prompt_length(rollouts[i])]):
        members = sorted(group, key=lambda i: (-len(rollouts[i].ids), i))
        prompt = prompt_length(rollouts[members[0]])
        mean_completion = sum(len(rollouts[i].ids) for i in members) / len(members) - prompt
        longest = len(rollouts[members[0]].ids) - prompt
        most = (min(token_budget, math.isqrt(MAX_ATTENDED_PAIRS)) - prompt) // longest
        sizes = range(1, 1 + min(len(members), max(most, 1)))
        size = min(sizes, key=partial(packing_cost, len(members), prompt, mean_completion, cost, causal))  # 1 if every cost is infinite
        for part in (members[i : i + size] for i in range(0, len(members), size)):
            shared = prompt if len(part) > 1 else 0
            rows.append(Row(tuple(part), shared, shared + sum(len(rollouts[i].ids) - shared for i in part)))
    return rows


def packing_cost(count: int, prompt: int, completion: float, cost: float, causal: float, size: int) -> float:
    """Cost of `count` rollouts in rows of `size`, relative to one token's forward pass. prompt, completion: lengths in tokens.

    Sharing a prompt saves tokens, but its mask makes attention compute every pair in the row.
    """
    tokens = prompt + size * completion
    return math.ceil(count / size) * (tokens + cost * tokens**2 * (causal if size == 1 else 1))


def prompt_length(rollout: Rollout) -> int:
    """Number of tokens before the first sampled one."""
    return rollout.loss_mask.index(True)


def collate(
    rollouts: Sequence[Rollout], advantages: Sequence[float], token_budget: int, device: torch.device, cost: float = float("inf")
) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` tokens with padding, but of one row at least. Sorts rows by length to keep padding short.

    advantages: one per rollout. cost: see `attention_cost`; by default every rollout has a row of its own.
    """
    packed_rows = pack_rows(rollouts, cost, token_budget, CAUSAL_SHARE.get(device.type, CAUSAL_SHARE["cuda"]))
    rows = sorted(packed_rows, key=lambda row: (len(row.members) > 1, -row.tokens, row.members))
    ids, masks = [rollout.ids for rollout in rollouts], [rollout.loss_mask for rollout in rollouts]
    batches, start = [], 0
    while start < len(rows):
        width, several = rows[start].tokens, len(rows[start].members) > 1
        count = max(1, min(token_budget // width, MAX_ATTENDED_PAIRS // width**2 if several else token_budget))
        chosen = [row for row in rows[start : start + count] if (len(row.members) > 1) == several]
        start += len(chosen)
        packed = _fill_rows(ids, masks, chosen)
        order = [i for row in chosen for i in row.members]
        logprobs = np.concatenate([np.array(rollouts[i].logprobs, dtype=np.float32)[np.array(masks[i])] for i in order])
        counts = [rollouts[i].completion_tokens for i in order]
        token_advantages = np.repeat(np.array([advantages[i] for i in order], dtype=np.float32), counts)
        batches.append(
            MicroBatch(
                packed.ids.to(device),
                packed.loss_mask.to(device),
                torch.from_numpy(logprobs).to(device),
                torch.from_numpy(token_advantages).to(device),
                packed.layout(device) if several else None,
                members=tuple(order),
            )
        )
    return batches


def mean_entropies(rollouts: Sequence[Rollout], batches: Sequence[MicroBatch]) -> dict[int, float]:
    """Mean entropy in nats of each rollout's sampled tokens, by the rollout's index, after an update of the batches that hold them."""
    found: dict[int, float] = {}
    for batch in batches:
        parts = torch.cat(batch.entropies).cpu().split([rollouts[index].completion_tokens for index in batch.members])
        found |= {index: part.mean().item() for index, part in zip(batch.members, parts, strict=True)}
    return found


@dataclass(frozen=True)
class _PackedRows:
    """All [B, T]. positions, previous: see `Layout`. segment: 0 for the shared prompt, 1, 2, ... for the members, -1 for padding."""

    ids: torch.Tensor
    loss_mask: torch.Tensor
    positions: torch.Tensor
    previous: torch.Tensor
    segment: torch.Tensor

    def layout(self, device: torch.device) -> Layout:
        """Each token attends to earlier tokens of its own segment and of the shared prompt."""
        segment = self.segment.to(device)
        key, query = segment[:, None, None, :], segment[:, None, :, None]
        width = segment.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        return Layout(self.positions.to(device), self.previous.to(device), causal & ((key == 0) | (key == query)))


def _fill_rows(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], rows: Sequence[Row]) -> _PackedRows:
    """Copy the sequences to tensors as `rows` says. ids, masks: of every rollout."""
    shape = len(rows), max(row.tokens for row in rows)
    tokens, positions, previous = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    sampled, segments = np.zeros(shape, dtype=bool), np.full(shape, -1, dtype=np.int64)
    for line, row in enumerate(rows):
        end = 0
        for segment, member in enumerate(row.members):
            first = 0 if segment == 0 else row.shared  # the shared prompt is written with the first member
            count = len(ids[member]) - first
            place = slice(end, end + count)
            tokens[line, place] = ids[member][first:]
            sampled[line, place] = masks[member][first:]
            positions[line, place] = np.arange(first, first + count)
            previous[line, place] = np.arange(end - 1, end - 1 + count)
            previous[line, end] = first - 1
            segments[line, place] = segment + 1
            end += count
        segments[line, : row.shared] = 0
    return _PackedRows(*map(torch.from_numpy, (tokens, sampled, positions, previous, segments)))
