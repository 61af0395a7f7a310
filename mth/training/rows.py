"""Rollouts packed into rows of tokens. Rollouts of one prompt may share a row, so that the prompt is computed once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from mth.rollout.player import Rollout
from mth.training.lines import Line, Pieces
from mth.training.logprobs import Layout

MAX_ATTENDED_PAIRS = 2**25  # entries of the attention masks of one micro-batch, and of one row
MULTIPLE = 16  # of tokens in a line: a matrix product is faster, and can write its result by feature (docs/gpu.md)


class Packing(NamedTuple):
    """How rollouts share rows; see `mth.training.sharing.packing_of`. By default each has a row of its own.

    pair: time of an attended pair of tokens under a mask, relative to a token's way through the decoder's weights; infinite if rows are
    not shared. causal: the share of it that a pair of a row without a mask takes. lines: rows are laid end to end, and attention needs no mask.
    """

    pair: float = math.inf
    causal: float = 1.0
    lines: bool = False

    @property
    def shares(self) -> bool:
        """Whether rollouts may share rows."""
        return self.pair < math.inf


ALONE = Packing()


@dataclass(frozen=True)
class Row:
    """members: indices of the rollouts in a row. Their first `shared` tokens are equal and stored once, followed by the rest of each rollout.

    tokens: length of the row. A single rollout shares nothing.
    """

    members: tuple[int, ...]
    shared: int
    tokens: int


class Piece(NamedTuple):
    """Tokens first, first + 1, ... of a rollout, `length` of them. before: the number of the piece in the same row that they continue; -1: none."""

    member: int
    first: int
    length: int
    before: int = -1


@dataclass(frozen=True)
class FilledRows:
    """All [B, T]. positions, previous: see `Layout`. piece: number of the piece in its row, -1 for padding."""

    ids: torch.Tensor
    loss_mask: torch.Tensor
    positions: torch.Tensor
    previous: torch.Tensor
    piece: torch.Tensor

    def masked(self, device: torch.device) -> Layout:
        """Layout under a mask: each token attends to earlier tokens of its own piece and of the first one, which is the shared prompt."""
        piece = self.piece.to(device)
        key, query = piece[:, None, None, :], piece[:, None, :, None]
        width = piece.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        return Layout(self.positions.to(device), self.previous.to(device), causal & ((key == 0) | (key == query)))


def pack_rows(rollouts: Sequence[Rollout], packing: Packing, token_budget: int) -> list[Row]:
    """Rows for all rollouts. Neighbours with the same prompt share rows of the cheapest size that fits into `token_budget` tokens."""
    rows, widest = [], token_budget if packing.lines else min(token_budget, math.isqrt(MAX_ATTENDED_PAIRS))
    for _, group in groupby(range(len(rollouts)), key=lambda i: rollouts[i].ids[: prompt_length(rollouts[i])]):
        members = sorted(group, key=lambda i: (-len(rollouts[i].ids), i))
        prompt = prompt_length(rollouts[members[0]])
        mean_completion = sum(len(rollouts[i].ids) for i in members) / len(members) - prompt
        longest = len(rollouts[members[0]].ids) - prompt
        sizes = range(1, 1 + min(len(members), max((widest - prompt) // longest, 1)))
        size = min(sizes, key=partial(packing_cost, packing, len(members), prompt, mean_completion))  # 1 if every cost is infinite
        for part in (members[i : i + size] for i in range(0, len(members), size)):
            shared = prompt if len(part) > 1 else 0
            rows.append(Row(tuple(part), shared, shared + sum(len(rollouts[i].ids) - shared for i in part)))
    return rows


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
    pieces = [_pieces(row, ids) for row in rows]
    return _fill(ids, masks, pieces, max(row.tokens for row in rows))


def fill_line(
    ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], rows: Sequence[Row], device: torch.device
) -> tuple[FilledRows, Layout]:
    """Copy the sequences to one line of a multiple of MULTIPLE tokens, see mth.training.lines. rows: those that share a prompt first."""
    groups = [row for row in rows if row.shared]
    prompts = [Piece(row.members[0], 0, row.shared) for row in groups]
    replies = [
        [Piece(member, row.shared, len(ids[member]) - row.shared, number) for member in row.members] for number, row in enumerate(groups)
    ]
    single = [Piece(row.members[0], 0, row.tokens) for row in rows[len(groups) :]]
    pieces = [*prompts, *(piece for group in replies for piece in group), *single]
    tokens = sum(piece.length for piece in pieces)
    width = padded_length(tokens)
    filled = _fill(ids, masks, [pieces], width)
    lengths = [piece.length for piece in pieces] + [width - tokens] * (width > tokens)
    line = Line(Pieces.of(lengths, device))
    if groups:
        shared, answering = [row.shared for row in groups], [row.tokens - row.shared for row in groups]
        line = Line(line.own, Pieces.of(shared, device), Pieces.of(answering, device), sum(shared), sum(answering))
    return filled, Layout(filled.positions.to(device), filled.previous.to(device), line)


def padded_length(tokens: int) -> int:
    """Tokens of a line that holds so many."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def _pieces(row: Row, ids: Sequence[Sequence[int]]) -> list[Piece]:
    """The shared prompt and the rest of each member, or the whole of a single rollout."""
    if not row.shared:
        return [Piece(row.members[0], 0, row.tokens)]
    rest = [Piece(member, row.shared, len(ids[member]) - row.shared, 0) for member in row.members]
    return [Piece(row.members[0], 0, row.shared), *rest]


def _fill(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], rows: Sequence[Sequence[Piece]], width: int) -> FilledRows:
    shape = len(rows), width
    tokens, positions, previous = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    sampled, numbers = np.zeros(shape, dtype=bool), np.full(shape, -1, dtype=np.int64)
    for line, pieces in enumerate(rows):
        end, ends = 0, list[int]()
        for number, (member, first, length, before) in enumerate(pieces):
            place, part = slice(end, end + length), slice(first, first + length)
            tokens[line, place] = ids[member][part]
            sampled[line, place] = masks[member][part]
            positions[line, place] = np.arange(first, first + length)
            previous[line, place] = np.arange(end - 1, end - 1 + length)
            previous[line, end] = ends[before] if before >= 0 else -1
            numbers[line, place] = number
            end += length
            ends.append(end - 1)
    return FilledRows(*map(torch.from_numpy, (tokens, sampled, positions, previous, numbers)))
