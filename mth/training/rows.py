"""Rollouts packed into rows of tokens. Rollouts of one prompt may share a row, so that the prompt is computed once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from mth.rollout.player import Rollout
from mth.training.lines import Line
from mth.training.logprobs import Layout

MAX_ATTENDED_PAIRS = 2**25  # entries of the attention masks of one micro-batch, and of one row
MULTIPLE = 16  # of tokens in a line: a matrix product is faster, and can write its result by feature (docs/gpu.md)


class Packing(NamedTuple):
    """How rollouts share rows; see `mth.training.sharing.packing_of`. By default each has a row of its own.

    pair: time of an attended pair of tokens under a mask, relative to a token's way through the decoder's weights; infinite if no mask is used.
    causal: the share of it that a pair of a row without a mask takes. lines: rows are laid end to end, and attention needs no mask.
    """

    pair: float = math.inf
    causal: float = 1.0
    lines: bool = False

    @property
    def shares(self) -> bool:
        """Whether rollouts may share rows."""
        return self.lines or self.pair < math.inf


ALONE = Packing()


@dataclass(frozen=True)
class Row:
    """members: indices of the rollouts in a row. Their first `shared` tokens are equal and stored once, followed by the rest of each rollout.

    tokens: length of the row. A single rollout shares nothing.
    """

    members: tuple[int, ...]
    shared: int
    tokens: int


class Span(NamedTuple):
    """Tokens first, first + 1, ... of a rollout, `length` of them. before: the number of the span in the same row that they continue; -1: none."""

    member: int
    first: int
    length: int
    before: int = -1


@dataclass(frozen=True)
class FilledRows:
    """All [B, T]. positions, previous: see `Layout`. span: number of the token's span in its row, -1 for padding."""

    ids: torch.Tensor
    loss_mask: torch.Tensor
    positions: torch.Tensor
    previous: torch.Tensor
    span: torch.Tensor

    def masked(self, device: torch.device) -> Layout:
        """Layout under a mask: each token attends to earlier tokens of its own span and of the first one, which is the shared prompt."""
        span = self.span.to(device)
        key, query = span[:, None, None, :], span[:, None, :, None]
        width = span.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        return Layout(self.positions.to(device), self.previous.to(device), causal & ((key == 0) | (key == query)))


def pack_rows(rollouts: Sequence[Rollout], packing: Packing, token_budget: int) -> list[Row]:
    """Rows for all rollouts, to be used under a mask. Neighbours with the same prompt share rows of the cheapest size that fits into the budget."""
    rows, widest = [], min(token_budget, math.isqrt(MAX_ATTENDED_PAIRS))
    for prompt, group in _groups(rollouts):
        members = sorted(group, key=lambda i: (-len(rollouts[i].ids), i))
        mean_completion = sum(len(rollouts[i].ids) for i in members) / len(members) - prompt
        longest = len(rollouts[members[0]].ids) - prompt
        sizes = range(1, 1 + min(len(members), max((widest - prompt) // longest, 1)))
        size = min(sizes, key=partial(packing_cost, packing, len(members), prompt, mean_completion))  # 1 if every cost is infinite
        rows += [_row(rollouts, members[i : i + size], prompt) for i in range(0, len(members), size)]
    return rows


def pack_lines(rollouts: Sequence[Rollout], token_budget: int) -> list[list[Row]]:
    """Lines for all rollouts, of at most `token_budget` tokens, but of one rollout at least. A group that does not fit goes on in the next line."""
    lines, tokens = [list[Row]()], 0
    for prompt, group in _groups(rollouts):
        here: list[int] = []  # members of the group in the line
        for member in group:
            completion = len(rollouts[member].ids) - prompt
            if tokens and padded_length(tokens + completion + prompt * (not here)) > token_budget:
                lines[-1] += [_row(rollouts, here, prompt)] if here else []
                lines, tokens, here = [*lines, []], 0, []
            tokens += completion + prompt * (not here)
            here.append(member)
        lines[-1].append(_row(rollouts, here, prompt))
    return [sorted(line, key=lambda row: not row.shared) for line in lines]


def _groups(rollouts: Sequence[Rollout]) -> Iterator[tuple[int, list[int]]]:
    """Neighbours with the same prompt: its length, and their indices."""
    for prompt, group in groupby(range(len(rollouts)), key=lambda i: rollouts[i].ids[: prompt_length(rollouts[i])]):
        yield len(prompt), list(group)


def _row(rollouts: Sequence[Rollout], members: Sequence[int], prompt: int) -> Row:
    shared = prompt if len(members) > 1 else 0
    return Row(tuple(members), shared, shared + sum(len(rollouts[i].ids) - shared for i in members))


def packing_cost(packing: Packing, count: int, prompt: int, completion: float, size: int) -> float:
    """Cost of `count` rollouts in rows of `size`, relative to one token's forward pass. prompt, completion: lengths in tokens.

    Sharing a prompt saves tokens, but a mask makes attention compute every pair in the row.
    """
    tokens = prompt + size * completion
    return math.ceil(count / size) * (tokens + packing.pair * tokens**2 * (packing.causal if size == 1 else 1))


def prompt_length(rollout: Rollout) -> int:
    """Number of tokens before the first sampled one."""
    return rollout.loss_mask.index(True)


def fill_rows(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], rows: Sequence[Row]) -> FilledRows:
    """Copy the sequences to tensors, one row below the other, padded on the right. ids, masks: of every rollout."""
    return _fill(ids, masks, [_spans(row, ids) for row in rows], max(row.tokens for row in rows))


def fill_line(
    ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], rows: Sequence[Row], device: torch.device
) -> tuple[FilledRows, Layout]:
    """Copy the sequences to one line of a multiple of MULTIPLE tokens, see mth.training.lines. rows: those that share a prompt first."""
    groups = [row for row in rows if row.shared]
    prompts = [Span(row.members[0], 0, row.shared) for row in groups]
    replies = [
        [Span(member, row.shared, len(ids[member]) - row.shared, number) for member in row.members] for number, row in enumerate(groups)
    ]
    alone = [Span(row.members[0], 0, row.tokens) for row in rows[len(groups) :]]
    tokens = sum(row.tokens for row in rows)
    width = padded_length(tokens)
    filled = _fill(ids, masks, [[*prompts, *(span for group in replies for span in group), *alone]], width)
    lengths = [span.length for span in alone] + [width - tokens] * (width > tokens)  # what fills the line up is a piece of its own
    line = Line.of([row.shared for row in groups], [[span.length for span in group] for group in replies], lengths, device)
    return filled, Layout(filled.positions.to(device), filled.previous.to(device), line)


def padded_length(tokens: int) -> int:
    """Tokens of a line that holds so many."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def _spans(row: Row, ids: Sequence[Sequence[int]]) -> list[Span]:
    """The shared prompt and the rest of each member, or the whole of a single rollout."""
    if not row.shared:
        return [Span(row.members[0], 0, row.tokens)]
    rest = [Span(member, row.shared, len(ids[member]) - row.shared, 0) for member in row.members]
    return [Span(row.members[0], 0, row.shared), *rest]


def _fill(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], rows: Sequence[Sequence[Span]], width: int) -> FilledRows:
    shape = len(rows), width
    tokens, positions, previous = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    sampled, numbers = np.zeros(shape, dtype=bool), np.full(shape, -1, dtype=np.int64)
    for row, spans in enumerate(rows):
        end, ends = 0, list[int]()
        for number, (member, first, length, before) in enumerate(spans):
            place, part = slice(end, end + length), slice(first, first + length)
            tokens[row, place] = ids[member][part]
            sampled[row, place] = masks[member][part]
            positions[row, place] = np.arange(first, first + length)
            previous[row, place] = np.arange(end - 1, end - 1 + length)
            previous[row, end] = ends[before] if before >= 0 else -1
            numbers[row, place] = number
            end += length
            ends.append(end - 1)
    return FilledRows(*map(torch.from_numpy, (tokens, sampled, positions, previous, numbers)))
