"""Choosing the active entries of a model: mask families, exact counts, and a hash that names a mask.

A family is a function (shapes, percent, mask_seed, options, weights) -> chooser, and a chooser gives the sorted flat indices of a tensor by
name, None for all of it, so that masks can be drawn one tensor at a time. `active_counts` says how many there will be. The same seed gives the same indices on every platform: they come from numpy's Philox bit stream (whose raw output numpy guarantees to be
stable) and integer arithmetic only, never from a floating-point or device generator.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mth.config import Budget, Magnitude, MaskConfig, MaskFamily, density
from mth.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
Indices = dict[str, np.ndarray | None]
Weights = Callable[[str], np.ndarray]  # name -> that tensor's base weights, flat fp32
Choose = Callable[[str], np.ndarray | None]  # name -> sorted flat indices of that tensor, None for all of it
Family = Callable[[Shapes, float, int, MaskConfig, Weights | None], Choose]
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")  # decoder layers as transformers names them


def active_count(size: int, percent: float) -> int:
    """k = floor(p n) of paper section 2.2, in exact rational arithmetic; n = `size` entries, p = 1 - percent/100."""
    return math.floor(size * density(percent))


def tensor_stream(mask_seed: int, name: str) -> np.random.Philox:
    """The bit generator of one tensor: keyed by seed and name, so that equal shapes get different masks."""
    digest = hashlib.sha256(f"mth-mask-v1:{mask_seed}:{name}".encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))


def index_dtype(size: int) -> type[np.signedinteger]:
    """int32 wherever a tensor of `size` entries allows: 4 bytes per active entry."""
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64


def uniform_integers(stream: np.random.Philox, bound: int, count: int) -> np.ndarray:
    """At least `count` exactly uniform integers in [0, bound): the low bits of raw words, those out of range rejected."""
    bits = max(1, (bound - 1).bit_length())
    dtype = index_dtype(bound)
    pieces, missing = [], count
    while missing > 0:
        draws = math.ceil(missing * 2**bits / bound * 1.02) + 16
        if bits <= 32:  # two draws per 64-bit word
            words = stream.random_raw((draws + 1) // 2).astype("<u8", copy=False).view("<u4") & np.uint32(2**bits - 1)
        else:
            words = stream.random_raw(draws) & np.uint64(2**bits - 1)
        fitting = words[words < bound].astype(dtype)
        pieces.append(fitting)
        missing -= fitting.size
    return np.concatenate(pieces)


def sample_without_replacement(stream: np.random.Philox, size: int, count: int) -> np.ndarray:
    """`count` of `size` indices, uniform over all subsets, sorted. O(count) memory and O(count log count) time.

    The first `count` distinct values of a sequence of uniform draws are a uniform subset. As a set they can be gathered in rounds:
    each round draws as many values as are still missing, so it can never overshoot.
    """
    if count > size // 2:
        active = np.ones(size, dtype=bool)
        active[sample_without_replacement(stream, size, size - count)] = False
        return np.flatnonzero(active).astype(index_dtype(size))
    chosen = np.empty(0, dtype=index_dtype(size))
    while chosen.size < count:
        missing = count - chosen.size
        fresh = distinct(uniform_integers(stream, size, missing)[:missing])
        if chosen.size:
            position = np.minimum(np.searchsorted(chosen, fresh), chosen.size - 1)
            fresh = fresh[chosen[position] != fresh]
        chosen = np.concatenate([chosen, fresh])
        chosen.sort(kind="stable")
    return chosen


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted distinct values (numpy's own `unique` is several times slower here)."""
    values.sort()
    keep = np.empty(values.size, dtype=bool)
    keep[:1] = True
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


def active_counts(shapes: Shapes, percent: float, mask: MaskConfig) -> dict[str, int]:
    """Active entries per tensor, known before anything is sampled: the floor rule, or what the budget gives to the tensors of one layer.

    `matched` spreads the random mask's total over the layer in proportion to the tensors' sizes, what rounding leaves to the largest
    remainders. Raises UserError when the layer has fewer entries than that.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    floors = {name: active_count(size, percent) for name, size in sizes.items()}
    if percent == 0 or mask.family not in (MaskFamily.first_layer, MaskFamily.last_layer):
        return floors
    inside = layer_tensors(shapes, last=mask.family is MaskFamily.last_layer)
    if mask.budget is Budget.whole_layer:
        return {name: size if name in inside else 0 for name, size in sizes.items()}
    budget, room = sum(floors.values()), sum(sizes[name] for name in inside)
    if budget > room:
        raise UserError(
            f"sparsity.percent={percent:g} leaves {budget:,} entries, but the layer of mask.family={mask.family.name} has only {room:,}; "
            "raise sparsity.percent or choose mask.budget=whole_layer"
        )
    counts = {name: budget * sizes[name] // room if name in inside else 0 for name in shapes}
    by_remainder = sorted(inside, key=lambda name: -(budget * sizes[name] % room))
    for name in by_remainder[: budget - sum(counts.values())]:
        counts[name] += 1
    return counts


def layer_tensors(shapes: Shapes, last: bool) -> list[str]:
    """Tensors of the first or last decoder layer. Raises UserError when no tensor's name tells its layer."""
    layers = {name: int(found[1]) for name in shapes if (found := LAYER.search(name)) is not None}
    if not layers:
        raise UserError("mask.family=first_layer and last_layer need a model whose tensors are named by decoder layer")
    wanted = (max if last else min)(layers.values())
    return [name for name, layer in layers.items() if layer == wanted]


def random_entries(shapes: Shapes, percent: float, mask_seed: int, mask: MaskConfig, weights: Weights | None) -> Choose:
    """The paper's mask (section 2.2), and its appendix C inside one layer: entries uniform without replacement, by `active_counts`."""
    counts = active_counts(shapes, percent, mask)

    def choose(name: str) -> np.ndarray | None:
        size, count = math.prod(shapes[name]), counts[name]
        return None if count == size else sample_without_replacement(tensor_stream(mask_seed, name), size, count)

    return choose


def by_magnitude(shapes: Shapes, percent: float, mask_seed: int, mask: MaskConfig, weights: Weights | None) -> Choose:
    """The k largest or smallest entries of each tensor of the base model by absolute value; of equal ones those that come first."""
    assert weights is not None
    counts = active_counts(shapes, percent, mask)
    return lambda name: top_entries(weights(name), counts[name], mask.magnitude is Magnitude.largest)


def top_entries(weight: np.ndarray, count: int, largest: bool) -> np.ndarray | None:
    """Sorted indices of the `count` largest (smallest) absolute values of a flat tensor; O(n) time."""
    if count == weight.size:
        return None
    size = np.abs(weight)
    key = -size if largest else size
    if count == 0:
        return np.empty(0, dtype=index_dtype(weight.size))
    limit = np.partition(key, count - 1)[count - 1]
    chosen = key < limit
    chosen[np.flatnonzero(key == limit)[: count - int(chosen.sum())]] = True
    return np.flatnonzero(chosen).astype(index_dtype(weight.size))


FAMILIES: dict[MaskFamily, Family] = {
    MaskFamily.random: random_entries,
    MaskFamily.first_layer: random_entries,
    MaskFamily.last_layer: random_entries,
    MaskFamily.magnitude: by_magnitude,
}
NEED_WEIGHTS = (MaskFamily.magnitude,)


def chooser(shapes: Shapes, mask: MaskConfig | MaskFamily, percent: float, mask_seed: int, weights: Weights | None = None) -> Choose:
    """The mask as a function of the tensor's name. mask: family and its options, or a family alone with its defaults.

    weights: of the base model; families in NEED_WEIGHTS raise UserError without them.
    """
    mask = MaskConfig(mask) if isinstance(mask, MaskFamily) else mask
    if mask.family in NEED_WEIGHTS and weights is None:
        raise UserError(f"mask.family={mask.family.name} is chosen by the weights of the base model, which are not at hand here")
    return FAMILIES[mask.family](shapes, percent, mask_seed, mask, weights)


def sample_mask(shapes: Shapes, mask: MaskConfig | MaskFamily, percent: float, mask_seed: int, weights: Weights | None = None) -> Indices:
    """Indices of every tensor, in the order of `shapes`; a tied tensor must appear once. Raises UserError when nothing is active."""
    choose = chooser(shapes, mask, percent, mask_seed, weights)
    indices = {name: choose(name) for name in shapes}
    if count_active(shapes, indices) == 0:
        total = sum(math.prod(shape) for shape in shapes.values())
        raise UserError(f"sparsity.percent={percent} leaves no active entry in this model of {total:,} parameters; lower it")
    return indices


def count_active(shapes: Shapes, indices: Indices) -> int:
    """K, the number of active entries of the whole model."""
    return sum(math.prod(shapes[name]) if index is None else index.size for name, index in indices.items())


def mask_sha256(shapes: Shapes, indices: Indices) -> str:
    """Names a mask: hash over every tensor's name, shape and little-endian indices."""
    digest = hashlib.sha256()
    for name, index in indices.items():
        digest.update(f"{name}:{tuple(shapes[name])}:{'all' if index is None else index.size}:".encode())
        if index is not None:
            digest.update(_little_endian(index))
    return digest.hexdigest()


def _little_endian(index: np.ndarray) -> memoryview:
    return np.ascontiguousarray(index.astype(index.dtype.newbyteorder("<"), copy=False)).data.cast("B")


def total_parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    """Number of entries of all tensors."""
    return sum(math.prod(shape) for shape in shapes)
