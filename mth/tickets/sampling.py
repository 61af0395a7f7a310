"""Uniform sampling without replacement, with the same result on every platform.

Uses raw words of numpy's Philox generator, which numpy guarantees to be stable, and integer arithmetic only. Never uses floating-point draws
or a device's generator.
"""

import hashlib
import math

import numpy as np

from mth.tickets.indices import index_dtype


def tensor_stream(mask_seed: int, name: str) -> np.random.Philox:
    """The random stream of one tensor, keyed by seed and name, so that tensors of equal shape get different masks."""
    digest = hashlib.sha256(f"mth-mask-v1:{mask_seed}:{name}".encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))


def uniform_integers(stream: np.random.Philox, bound: int, count: int) -> np.ndarray:
    """At least `count` integers, exactly uniform in [0, bound): takes the low bits of raw words and rejects what is out of range."""
    bits = max(1, (bound - 1).bit_length())
    dtype = index_dtype(bound)
    pieces, missing = [], count
    while missing > 0:
        draws = math.ceil(missing * 2**bits / bound * 1.02) + 16
        if bits <= 32:  # two draws per 64-bit word
            words = stream.random_raw((draws + 1) // 2).astype("<u8", copy=False).view("<u4") & np.uint32(2**bits - 1)
        else:
            words = stream.random_raw(draws) & np.uint64(2**bits - 1)
        accepted = words[words < bound].astype(dtype)
        pieces.append(accepted)
        missing -= accepted.size
    return np.concatenate(pieces)


def sample_without_replacement(stream: np.random.Philox, size: int, count: int) -> np.ndarray:
    """`count` of `size` indices, sorted, uniform over all subsets. O(count) memory and O(count log count) time.

    The first `count` distinct values of a stream of uniform draws are a uniform subset. They are collected in rounds. Each round draws as
    many values as are missing, so it never collects too many.
    """
    if count > size // 2:
        active = np.ones(size, dtype=bool)
        active[sample_without_replacement(stream, size, size - count)] = False
        return np.flatnonzero(active).astype(index_dtype(size))
    chosen = np.empty(0, dtype=index_dtype(size))
    while chosen.size < count:
        missing = count - chosen.size
        fresh = sorted_unique(uniform_integers(stream, size, missing)[:missing])
        if chosen.size:
            position = np.minimum(np.searchsorted(chosen, fresh), chosen.size - 1)
            fresh = fresh[chosen[position] != fresh]
        chosen = np.concatenate([chosen, fresh])
        chosen.sort(kind="stable")
    return chosen


def sorted_unique(values: np.ndarray) -> np.ndarray:
    """The distinct values, sorted. Sorts `values` in place, and is several times faster than `numpy.unique` here."""
    values.sort()
    keep = np.empty(values.size, dtype=bool)
    keep[:1] = True
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]
