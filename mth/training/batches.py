"""Micro-batches: rows of rollouts with what the update needs to know of their sampled tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mth.rollout.player import Rollout
from mth.training.logprobs import Layout
from mth.training.rows import ALONE, MAX_ATTENDED_PAIRS, Packing, Row, fill_line, fill_rows, pack_lines, pack_rows


@dataclass
class MicroBatch:
    """ids, loss_mask [B, T], padded on the right. layout: set if rows hold several rollouts, or for a line. rollout_logprobs, advantages, ref_logprobs [N]: one entry
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


def collate(
    rollouts: Sequence[Rollout], advantages: Sequence[float], token_budget: int, device: torch.device, packing: Packing = ALONE
) -> list[MicroBatch]:
    """Micro-batches of at most `token_budget` tokens with padding, but of one row at least. advantages: one per rollout."""
    parts = pack_lines(rollouts, token_budget) if packing.lines else _blocks(pack_rows(rollouts, packing, token_budget), token_budget)
    return [_micro_batch(rollouts, advantages, part, device, packing.lines) for part in parts]


def _blocks(rows: list[Row], token_budget: int) -> Iterator[list[Row]]:
    """Rows to be stacked, sorted by length to keep padding short. Those that share a prompt need masks and are kept apart."""
    rows, start = sorted(rows, key=lambda row: (len(row.members) > 1, -row.tokens, row.members)), 0
    while start < len(rows):
        width, several = rows[start].tokens, len(rows[start].members) > 1
        count = max(1, min(token_budget // width, MAX_ATTENDED_PAIRS // width**2 if several else token_budget))
        chosen = [row for row in rows[start : start + count] if (len(row.members) > 1) == several]
        start += len(chosen)
        yield chosen


def _micro_batch(rollouts: Sequence[Rollout], advantages: Sequence[float], rows: list[Row], device: torch.device, line: bool) -> MicroBatch:
    ids, masks = [rollout.ids for rollout in rollouts], [rollout.loss_mask for rollout in rollouts]
    layout: Layout | None = None
    if line:
        filled, layout = fill_line(ids, masks, rows, device)
    else:
        filled = fill_rows(ids, masks, rows)
        layout = filled.masked(device) if rows[0].shared else None
    order = [i for row in rows for i in row.members]
    logprobs = np.concatenate([np.array(rollouts[i].logprobs, dtype=np.float32)[np.array(masks[i])] for i in order])
    counts = [rollouts[i].completion_tokens for i in order]
    token_advantages = np.repeat(np.array([advantages[i] for i in order], dtype=np.float32), counts)
    return MicroBatch(
        filled.ids.to(device),
        filled.loss_mask.to(device),
        torch.from_numpy(logprobs).to(device),
        torch.from_numpy(token_advantages).to(device),
        layout,
        members=tuple(order),
    )


def mean_entropies(rollouts: Sequence[Rollout], batches: Sequence[MicroBatch]) -> dict[int, float]:
    """Mean entropy in nats of each rollout's sampled tokens, by the rollout's index, after an update of the batches that hold them."""
    found: dict[int, float] = {}
    for batch in batches:
        parts = torch.cat(batch.entropies).cpu().split([rollouts[index].completion_tokens for index in batch.members])
        found |= {index: part.mean().item() for index, part in zip(batch.members, parts, strict=True)}
    return found
