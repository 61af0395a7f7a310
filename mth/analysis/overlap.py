"""Overlap of masks (paper, Table 3): exact counts for every pair of masks and every tensor, from seeds alone."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mth.config.learning_rates import density
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets.indices import Shapes, Weights
from mth.tickets.masks import lazy_mask

CHUNK_ENTRIES = 2**22  # entries counted at a time; their membership words fit into a CPU's cache
WORD_BITS = 32


@dataclass(frozen=True)
class Mask:
    """A mask of a given model: its seed, its sparsity in percent, its family and options."""

    seed: int
    percent: float = 99.0
    config: MaskConfig = field(default_factory=MaskConfig)


@dataclass(frozen=True)
class Overlap:
    """Overlap of M masks in each of T tensors.

    tensors [T]: names. shared [T, M, M] int64: entries that masks i and j share in a tensor; on the diagonal, the entries of one mask.
    """

    tensors: list[str]
    shared: np.ndarray

    def jaccard(self, tensor: str | None = None) -> np.ndarray:
        """Jaccard similarity |i and j| / |i or j| [M, M], in one tensor or in total; NaN where both masks are empty."""
        shared = self.shared.sum(0) if tensor is None else self.shared[self.tensors.index(tensor)]
        own = np.diag(shared)
        union = own[:, None] + own[None, :] - shared
        with np.errstate(invalid="ignore"):
            return np.where(union > 0, shared / union, np.nan)

    def pairs(self, tensor: str | None = None) -> np.ndarray:
        """Jaccard similarity of every pair [M (M - 1) / 2]."""
        return self.jaccard(tensor)[np.triu_indices(self.shared.shape[1], 1)]


def expected_jaccard(percent: float) -> float:
    """Mean Jaccard similarity of two independent random masks of density p: p / (2 - p)."""
    p = density(percent)
    return float(p / (2 - p))


def overlap(shapes: Shapes, masks: Sequence[Mask], weights: Weights | None = None, workers: int = 2) -> Overlap:
    """Count the shared entries of every pair of masks of one model. Holds the masks of `workers` tensors at a time.

    weights: of the base model, for families that choose by them. Raises UserError for fewer than two masks.
    """
    if len(masks) < 2:
        raise UserError(f"overlap needs at least two masks, not {len(masks)}")

    lazy_masks = [lazy_mask(shapes, mask.config, mask.percent, mask.seed, weights) for mask in masks]

    def count(name: str) -> np.ndarray:
        return shared_entries([draw(name) for draw in lazy_masks], math.prod(shapes[name]))

    by_size = sorted(shapes, key=lambda name: -math.prod(shapes[name]))  # largest first keeps all workers busy to the end
    with ThreadPoolExecutor(workers) as pool:
        counts = dict(zip(by_size, pool.map(count, by_size), strict=True))
    return Overlap(list(shapes), np.stack([counts[name] for name in shapes]))


def shared_entries(indices: Sequence[np.ndarray | None], size: int) -> np.ndarray:
    """Shared entries [M, M] int64 of M sorted lists of indices into a tensor of `size` entries; None stands for all of them.

    Sets one bit per mask in a word per entry, and counts pairs only at entries with two or more bits.
    """
    count = len(indices)
    shared = np.zeros((count, count), dtype=np.int64)
    groups = -(-count // WORD_BITS)
    for start in range(0, size, CHUNK_ENTRIES):
        end = min(start + CHUNK_ENTRIES, size)
        words = np.zeros((groups, end - start), dtype=np.uint32)
        for number, index in enumerate(indices):
            bit = np.uint32(1 << number % WORD_BITS)
            if index is None:
                words[number // WORD_BITS] |= bit
            else:
                low, high = np.searchsorted(index, (start, end))
                words[number // WORD_BITS, index[low:high] - start] |= bit  # indices of one mask are distinct
        several = np.flatnonzero(np.bitwise_count(words).sum(0, dtype=np.uint16) > 1)
        for piece in np.array_split(several, max(1, several.size // 2**16)):
            chosen = words[:, piece]
            bits = [((chosen[number // WORD_BITS] >> np.uint32(number % WORD_BITS)) & np.uint32(1)) for number in range(count)]
            table = np.array(bits, dtype=np.float32)  # sums at most 2^17 products of 0 and 1: exact in fp32
            shared += (table @ table.T).astype(np.int64)
    np.fill_diagonal(shared, [size if index is None else index.size for index in indices])
    return shared
