"""Random masks: exact counts, independence, stability."""

import math

import numpy as np
import pytest

from mth.foundations.errors import UserError
from mth.tickets.indices import count_active, mask_sha256
from mth.tickets.masks import sample_mask
from tests.tickets.counts import COUNTS


def random_mask(name, shape, percent, seed):
    return sample_mask({name: shape}, "random", percent, seed)[name]


def test_sampled_masks_have_those_counts(real):
    name, shapes = real
    for percent in (99, 99.99):
        indices = sample_mask(shapes, "random", percent, mask_seed=42)
        assert count_active(shapes, indices) == COUNTS[name][percent][0]
        for tensor, index in indices.items():
            assert index.dtype == np.int32
            assert (np.diff(index) > 0).all()
            assert index.size == 0 or (index[0] >= 0 and index[-1] < math.prod(shapes[tensor]))


def test_equal_shapes_get_different_masks_and_seeds_differ():
    a, b = random_mask("a", (100, 100), 99, 0), random_mask("b", (100, 100), 99, 0)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, random_mask("a", (100, 100), 99, 1))
    assert np.array_equal(a, random_mask("a", (100, 100), 99, 0))


def test_masks_never_change_between_versions():
    """A published seed names a mask for ever: this hash may only change together with the tag inside `tensor_stream`."""
    shapes = {"model.embed_tokens.weight": (1000, 64), "model.norm.weight": (64,)}
    assert random_mask("model.norm.weight", (1000,), 99, 42).tolist() == [30, 42, 67, 414, 451, 470, 548, 583, 728, 839]
    assert mask_sha256(shapes, sample_mask(shapes, "random", 99, 0)) == "b011ba87c55b86a587c71951ab987c008247b3fd7fe532dbb0b2ddcee9909cfe"


def test_dense_stores_no_index():
    shapes = {"w": (4, 5), "b": (5,)}
    indices = sample_mask(shapes, "random", 0, 0)
    assert indices == {"w": None, "b": None}
    assert count_active(shapes, indices) == 25


def test_two_masks_overlap_as_chance_says():
    a, b = (random_mask("w", (2000, 1000), 99, seed) for seed in (0, 10))
    shared = np.intersect1d(a, b).size
    jaccard = shared / (a.size + b.size - shared)
    assert jaccard == pytest.approx(0.01 / 1.99, rel=0.4)  # p / (2 - p) is 0.005025; 200 shared entries expected


def test_nothing_active_is_an_error():
    with pytest.raises(UserError, match=r"sparsity\.percent=99\.999 leaves no active entry"):
        sample_mask({"w": (10, 10)}, "random", 99.999, 0)
