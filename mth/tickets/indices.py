"""A mask: for each parameter tensor, the sorted flat indices of its active entries, or None if all are active."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mth.config.learning_rates import density

Shapes = Mapping[str, tuple[int, ...]]
Indices = dict[str, np.ndarray | None]
Weights = Callable[[str], np.ndarray]  # name -> base weights of the tensor, flat fp32
LazyMask = Callable[[str], np.ndarray | None]  # name -> indices of the tensor, drawn when it is called


def active_count(size: int, percent: float) -> int:
    """k = floor(p n) with n = `size` entries and p = 1 - percent / 100, in exact rational arithmetic (paper, section 2.2)."""
    return math.floor(size * density(percent))


def index_dtype(size: int) -> type[np.signedinteger]:
    """int32 if it can index a tensor of `size` entries, else int64."""
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64


def count_active(shapes: Shapes, indices: Indices) -> int:
    """K, the number of active entries of the whole model."""
    return sum(math.prod(shapes[name]) if index is None else index.size for name, index in indices.items())


def total_parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    """Number of entries of all tensors."""
    return sum(math.prod(shape) for shape in shapes)


def mask_sha256(shapes: Shapes, indices: Indices) -> str:
    """Identifies a mask: a hash of every tensor's name, shape and little-endian indices."""
    digest = hashlib.sha256()
    for name, index in indices.items():
        digest.update(f"{name}:{tuple(shapes[name])}:{'all' if index is None else index.size}:".encode())
        if index is not None:
            digest.update(np.ascontiguousarray(index.astype(index.dtype.newbyteorder("<"), copy=False)).data.cast("B"))
    return digest.hexdigest()
