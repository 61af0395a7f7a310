"""How much masks have in common (paper, Table 3): exact counts for every pair and tensor, from seeds alone."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mth.config import MaskConfig, density
from mth.errors import UserError
from mth.tickets.sampling import Shapes, Weights, chooser

CHUNK = 2**22  # entries whose membership words fit into a CPU's cache
WORD = 32


@dataclass(frozen=True)
class Mask:
    """What names a mask of a given model."""

    seed: int
    percent: float = 99.0
    options: MaskConfig = field(default_factory=MaskConfig)


@dataclass(frozen=True)
class Overlap:
    """tensors: names. shared [T, M, M] int64: entries that masks i and j both have in a tensor; the diagonal is a mask's own count."""

    tensors: list[str]
    shared: np.ndarray

    def jaccard(self, tensor: str | None = None) -> np.ndarray:
        """|i and j| / |i or j| [M, M], in one tensor or in total; NaN where both masks are empty."""
        shared = self.shared.sum(0) if tensor is None else self.shared[self.tensors.index(tensor)]
        own = np.diag(shared)
        union = own[:, None] + own[None, :] - shared
        with np.errstate(invalid="ignore"):
            return np.where(union > 0, shared / union, np.nan)

    def pairs(self, tensor: str | None = None) -> np.ndarray:
        """Jaccard similarity of every pair [M (M - 1) / 2]."""
        return self.jaccard(tensor)[np.triu_indices(self.shared.shape[1], 1)]


def expected_jaccard(percent: float) -> float:
    """p / (2 - p), the mean similarity of two independent random masks of density p."""
    p = density(percent)
    return float(p / (2 - p))


def overlap(shapes: Shapes, masks: Sequence[Mask], weights: Weights | None = None, workers: int = 2) -> Overlap:
    """Count every pair of masks of one model, of any family. Samples one tensor at a time: no files, and memory for that tensor's masks only.

    weights: for families that are chosen by the base model's weights. Raises UserError for fewer than two masks.
    """
    if len(masks) < 2:
        raise UserError(f"overlap needs at least two masks, not {len(masks)}")

    choosers = [chooser(shapes, mask.options, mask.percent, mask.seed, weights) for mask in masks]

    def count(name: str) -> np.ndarray:
        return shared_entries([choose(name) for choose in choosers], math.prod(shapes[name]))

    by_size = sorted(shapes, key=lambda name: -math.prod(shapes[name]))  # the largest first, so that none is left alone at the end
    with ThreadPoolExecutor(workers) as pool:
        counts = dict(zip(by_size, pool.map(count, by_size), strict=True))
    return Overlap(list(shapes), np.stack([counts[name] for name in shapes]))


def shared_entries(indices: Sequence[np.ndarray | None], size: int) -> np.ndarray:
    """Common entries [M, M] of M sorted index lists into a tensor of `size` entries; None stands for all of them.

    A word per entry holds one bit per mask; pairs are counted only where two bits or more are set.
    """
    count = len(indices)
    shared = np.zeros((count, count), dtype=np.int64)
    groups = -(-count // WORD)
    for start in range(0, size, CHUNK):
        end = min(start + CHUNK, size)
        words = np.zeros((groups, end - start), dtype=np.uint32)
        for number, index in enumerate(indices):
            bit = np.uint32(1 << number % WORD)
            if index is None:
                words[number // WORD] |= bit
            else:
                low, high = np.searchsorted(index, (start, end))
                words[number // WORD, index[low:high] - start] |= bit  # indices of one mask are distinct
        several = np.flatnonzero(np.bitwise_count(words).sum(0, dtype=np.uint16) > 1)
        for piece in np.array_split(several, max(1, several.size // 2**16)):
            chosen = words[:, piece]
            bits = [((chosen[number // WORD] >> np.uint32(number % WORD)) & np.uint32(1)) for number in range(count)]
            table = np.array(bits, dtype=np.float32)  # products of 0 and 1, at most 2^17 of them: exact in fp32
            shared += (table @ table.T).astype(np.int64)
    np.fill_diagonal(shared, [size if index is None else index.size for index in indices])
    return shared
