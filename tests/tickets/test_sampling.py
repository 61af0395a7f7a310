"""Uniform sampling without replacement."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mth.tickets.sampling import sample_without_replacement, tensor_stream


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**31), st.data())
def test_samples_are_distinct_sorted_and_in_range(size, seed, data):
    count = data.draw(st.integers(0, size))
    index = sample_without_replacement(tensor_stream(seed, "w"), size, count)
    assert index.size == count
    assert (np.diff(index) > 0).all()
    assert count == 0 or (index.min() >= 0 and index.max() < size)


@pytest.mark.parametrize(("size", "count"), [(7, 3), (7, 5), (100, 10), (33, 17)])
def test_every_entry_is_equally_likely(size, count):
    rounds = 6000
    hits = Counter(i for seed in range(rounds) for i in sample_without_replacement(tensor_stream(seed, "w"), size, count).tolist())
    expected = rounds * count / size
    chi2 = sum((hits[i] - expected) ** 2 / expected for i in range(size)) / (1 - count / size)
    assert chi2 < size + 5 * math.sqrt(2 * size)  # chi-square with about `size` degrees of freedom


def test_every_subset_is_equally_likely():
    rounds = 6000
    seen = Counter(tuple(sample_without_replacement(tensor_stream(seed, "w"), 5, 2).tolist()) for seed in range(rounds))
    assert len(seen) == 10
    assert all(abs(count - rounds / 10) < 5 * math.sqrt(rounds / 10) for count in seen.values())
